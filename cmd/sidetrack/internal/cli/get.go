// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/printers"
	"k8s.io/cli-runtime/pkg/resource"
	"k8s.io/client-go/rest"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/sandbox"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// printObject prints one object or a table.
type printObject = func(runtime.Object, io.Writer) error

// sandboxes is how the kind is named to the API server, so that somebody else's
// sandboxes are never meant.
const sandboxes = "sandboxes." + v1alpha1.Group

// example writes the program's name into examples.
func (p *program) example(text string) string {
	return strings.Trim(strings.ReplaceAll(text, "%[1]s", p.name), "\n")
}

// getFlags are those of get and list.
type getFlags struct {
	allNamespaces, watch bool
	selector             string
	print                *genericclioptions.PrintFlags
}

func (f *getFlags) register(cmd *cobra.Command) {
	f.print = genericclioptions.NewPrintFlags("")
	flags := cmd.Flags()
	flags.BoolVarP(&f.allNamespaces, "all-namespaces", "A", false, "of all namespaces")
	flags.StringVarP(&f.selector, "selector", "l", "", "only those that match this label `selector`")
	flags.BoolVarP(&f.watch, "watch", "w", false, "go on and print changes")
	f.print.AddFlags(cmd)
	flags.Lookup("output").Usage = "wide, or one of: " + strings.Join(f.print.AllowedFormats(), ", ")
}

func (p *program) getCommand() *cobra.Command {
	var f getFlags
	cmd := &cobra.Command{
		Use:   "get [NAME...]",
		Short: "Print sandboxes: a table, or the objects with -o",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.get(cmd, &f, args)
		},
		ValidArgsFunction: p.complete(sandboxNames),
	}
	f.register(cmd)
	return cmd
}

func (p *program) listCommand() *cobra.Command {
	var f getFlags
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the sandboxes of the namespace",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.get(cmd, &f, nil)
		},
	}
	f.register(cmd)
	return cmd
}

// get prints what the API server says: its table, with the columns that the
// resource definition has, or the objects.
func (p *program) get(cmd *cobra.Command, f *getFlags, names []string) error {
	if f.allNamespaces && len(names) > 0 {
		return usage(cmd, errors.New("a sandbox cannot be named with --all-namespaces: use -n"))
	}
	if f.selector != "" && len(names) > 0 {
		return usage(cmd, errors.New("names do not go with --selector: leave one of them out"))
	}
	format := *f.print.OutputFormat
	table := format == "" || format == "wide"
	printer, err := p.printer(f, table)
	if err != nil {
		return usage(cmd, err)
	}
	if err := p.configured(); err != nil {
		return err
	}
	namespace, _, err := p.kube.ToRawKubeConfigLoader().Namespace()
	if err != nil {
		return cluster.Explain(err, "read the kubeconfig")
	}
	r := resource.NewBuilder(p.kube).Unstructured().
		NamespaceParam(namespace).DefaultNamespace().AllNamespaces(f.allNamespaces).
		LabelSelectorParam(f.selector).
		ResourceTypeOrNameArgs(true, append([]string{sandboxes}, names...)...).
		ContinueOnError().Latest().
		TransformRequests(func(r *rest.Request) {
			if table {
				r.SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")
			}
		})
	if f.watch {
		return p.watch(cmd, r.SingleResourceType().Do(), table, printer)
	}
	infos, missing := r.Do().Infos()
	if !table {
		if missing != nil {
			return p.explainGet(cmd, namespace, missing)
		}
		return printer(together(infos), p.streams.Out)
	}
	w := printers.GetNewTabWriter(p.streams.Out)
	for _, info := range infos {
		t, err := shown(info.Object, table)
		if err != nil {
			return err
		}
		if empty(t) {
			_, err = fmt.Fprintln(p.streams.ErrOut, nothing(namespace, f.allNamespaces))
		} else {
			err = printer(t, w)
		}
		if err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return p.explainGet(cmd, namespace, missing)
}

// together makes one object of several, as kubectl does.
func together(infos []*resource.Info) runtime.Object {
	if len(infos) == 1 {
		return infos[0].Object
	}
	list := &unstructured.UnstructuredList{}
	list.SetAPIVersion("v1")
	list.SetKind("List")
	for _, info := range infos {
		if u, ok := info.Object.(*unstructured.Unstructured); ok {
			list.Items = append(list.Items, *u)
		}
	}
	return list
}

func nothing(namespace string, all bool) string {
	if all {
		return "No sandboxes found."
	}
	return fmt.Sprintf("No sandboxes found in namespace %s.", namespace)
}

// explainGet says which sandboxes there are when one is not.
func (p *program) explainGet(cmd *cobra.Command, namespace string, err error) error {
	var status apierrors.APIStatus
	if errors.As(err, &status) && apierrors.IsNotFound(err) && status.Status().Details != nil && status.Status().Details.Name != "" {
		if c, e := p.connect(); e == nil {
			if _, e := sandbox.Get(cmd.Context(), c, namespace, status.Status().Details.Name); e != nil {
				return e
			}
		}
	}
	return cluster.Explain(err, "read the sandboxes")
}

func (p *program) printer(f *getFlags, table bool) (printObject, error) {
	if !table {
		printer, err := f.print.ToPrinter()
		if err != nil {
			return nil, err
		}
		return printer.PrintObj, nil
	}
	return printers.NewTablePrinter(printers.PrintOptions{
		Wide: *f.print.OutputFormat == "wide", WithNamespace: f.allNamespaces,
	}).PrintObj, nil
}

// shown is what is to be printed of what has come: a Table where one was asked
// for.
func shown(o runtime.Object, table bool) (runtime.Object, error) {
	u, ok := o.(*unstructured.Unstructured)
	if !table || !ok || u.GetKind() != "Table" {
		return o, nil
	}
	t := &metav1.Table{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, t); err != nil {
		return nil, fmt.Errorf("read the API server's table: %w", err)
	}
	for i := range t.Rows {
		if raw := t.Rows[i].Object.Raw; len(raw) > 0 {
			decoded, err := runtime.Decode(unstructured.UnstructuredJSONScheme, raw)
			if err != nil {
				return nil, fmt.Errorf("read the API server's table: %w", err)
			}
			t.Rows[i].Object.Object = decoded
		}
	}
	return t, nil
}

func empty(o runtime.Object) bool {
	t, ok := o.(*metav1.Table)
	return ok && len(t.Rows) == 0
}

// watch prints what there is, and then each change.
func (p *program) watch(cmd *cobra.Command, r *resource.Result, table bool, printer printObject) error {
	infos, err := r.Infos()
	if err != nil {
		return p.explainGet(cmd, "", err)
	}
	if len(infos) != 1 {
		return usage(cmd, errors.New("only one sandbox, or all, can be watched: leave out the others' names"))
	}
	o := infos[0].Object
	version, err := versionOf(o)
	if err != nil {
		return cluster.Explain(err, "watch the sandboxes")
	}
	first, err := shown(o, table)
	if err != nil {
		return err
	}
	if err := printer(first, p.streams.Out); err != nil {
		return err
	}
	w, err := r.Watch(version)
	if err != nil {
		return cluster.Explain(err, "watch the sandboxes")
	}
	defer w.Stop()
	for {
		select {
		case <-cmd.Context().Done():
			return nil // The user has seen enough.
		case e, ok := <-w.ResultChan():
			if !ok {
				return &task.Failure{Message: "the API server has ended the watch", Remedy: "start it again"}
			}
			if e.Type == watch.Error {
				return cluster.Explain(apierrors.FromObject(e.Object), "watch the sandboxes")
			}
			o, err := shown(e.Object, table)
			if err != nil {
				return err
			}
			if t, ok := o.(*metav1.Table); ok {
				t.ColumnDefinitions = nil // they are there already
				if e.Type == watch.Deleted {
					continue
				}
			}
			if err := printer(o, p.streams.Out); err != nil {
				return err
			}
		}
	}
}

// versionOf is from where on a watch tells what is new.
func versionOf(o runtime.Object) (string, error) {
	m, err := meta.CommonAccessor(o)
	if err != nil {
		return "", err
	}
	return m.GetResourceVersion(), nil
}

// isNotFound reports that a failure is about an object that is not there.
func isNotFound(err error) bool { return apierrors.IsNotFound(err) }

// only returns the one error that there is, so that it is told as such.
func only(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok && len(joined.Unwrap()) == 1 {
		return joined.Unwrap()[0]
	}
	return err
}
