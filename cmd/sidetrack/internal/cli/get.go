// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/printers"
	"k8s.io/cli-runtime/pkg/resource"
	"k8s.io/client-go/rest"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/sandbox"
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
	headless, events     bool
	output               *output
}

func (f *getFlags) register(cmd *cobra.Command) {
	f.output = objectOutput(formatWide)
	flags := cmd.Flags()
	flags.BoolVarP(&f.allNamespaces, "all-namespaces", "A", false, "of all namespaces")
	flags.StringVarP(&f.selector, "selector", "l", "", "only those that match this label `selector`")
	flags.BoolVarP(&f.watch, "watch", "w", false, "go on and print changes")
	flags.BoolVar(&f.events, "output-watch-events", false, "with --watch, say of each what it is: ADDED, MODIFIED or DELETED")
	flags.BoolVar(&f.headless, "no-headers", false, "leave out the table's head")
	f.output.register(cmd)
}

func (p *program) getCommand() *cobra.Command {
	var f getFlags
	cmd := &cobra.Command{
		Use:   "get [NAME...]",
		Short: "Print sandboxes: a table, or the objects with -o",
		Args:  sandboxesFirst(math.MaxInt, cobra.ArbitraryArgs),
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
	if f.events && !f.watch {
		return usage(cmd, errors.New("--output-watch-events goes with --watch only"))
	}
	if err := f.output.check(cmd); err != nil {
		return err
	}
	table := f.output.printer == nil
	printer := f.printer()
	if err := p.configured(); err != nil {
		return err
	}
	if _, err := p.kube.ToRESTConfig(); err != nil {
		return unreadable(err)
	}
	namespace, _, err := p.kube.ToRawKubeConfigLoader().Namespace()
	if err != nil {
		return unreadable(err)
	}
	// asking asks for those of these names, or for all that match.
	asking := func(fields string, names ...string) *resource.Builder {
		return resource.NewBuilder(p.kube).Unstructured().
			NamespaceParam(namespace).DefaultNamespace().AllNamespaces(f.allNamespaces).
			LabelSelectorParam(f.selector).FieldSelectorParam(fields).
			ResourceTypeOrNameArgs(true, append([]string{sandboxes}, names...)...).
			ContinueOnError().Latest().
			TransformRequests(func(r *rest.Request) {
				if table {
					r.SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")
				}
			})
	}
	r := asking("", names...)
	if f.watch {
		again := func() *resource.Result {
			fields := ""
			if len(names) == 1 {
				fields = "metadata.name=" + names[0] // a list, which is there also when the sandbox is not
			}
			return asking(fields).SingleResourceType().Do()
		}
		return p.watch(cmd, namespace, f, r.SingleResourceType().Do(), again, printer)
	}
	infos, missing := r.Do().Infos()
	if !table {
		// Those that are there are printed all the same, as kubectl does.
		if missing == nil || len(infos) > 0 {
			if err := printer(together(infos), p.streams.Out); err != nil {
				return err
			}
		}
		return p.explainGet(cmd, namespace, missing)
	}
	w := printers.GetNewTabWriter(p.streams.Out)
	for _, info := range infos {
		t, err := shown(info.Object, table)
		if err != nil {
			return err
		}
		if empty(t) {
			_, err = fmt.Fprintln(p.streams.ErrOut, p.nothing(cmd, namespace, f.allNamespaces))
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

// nothing says that there are no sandboxes.
func (p *program) nothing(cmd *cobra.Command, namespace string, all bool) string {
	if all {
		return "No sandboxes found."
	}
	if c, err := p.connect(); err == nil {
		if missing := c.NoNamespace(cmd.Context(), namespace); missing != nil {
			return "No sandboxes found: " + missing.Error()
		}
	}
	return fmt.Sprintf("No sandboxes found in namespace %s.", namespace)
}

// explainGet says which sandboxes there are when one is not, and what is missing when
// there can be none.
func (p *program) explainGet(cmd *cobra.Command, namespace string, err error) error {
	const doing = "read the sandboxes"
	var status apierrors.APIStatus
	switch {
	case err == nil:
		return nil
	case errors.As(err, &status) && apierrors.IsNotFound(err) && status.Status().Details != nil && status.Status().Details.Group == v1alpha1.Group && status.Status().Details.Name != "":
		if c, e := p.connect(); e == nil {
			if _, e := sandbox.Get(cmd.Context(), c, namespace, status.Status().Details.Name); e != nil {
				return e
			}
		}
	case !errors.As(err, &status):
		// cli-runtime keeps the words alone where the kind is not known.
		if mapper, e := p.kube.ToRESTMapper(); e == nil {
			if _, e := mapper.RESTMapping(v1alpha1.GroupVersion.WithKind(v1alpha1.SandboxKind).GroupKind(), v1alpha1.GroupVersion.Version); meta.IsNoMatchError(e) {
				return cluster.Explain(e, doing)
			}
		}
	}
	return cluster.Explain(err, doing)
}

// printer prints objects in the format that is wanted, and tables otherwise.
func (f *getFlags) printer() printObject {
	if f.output.printer != nil {
		return f.output.printer.PrintObj
	}
	return printers.NewTablePrinter(printers.PrintOptions{
		Wide: f.output.wide(), WithNamespace: f.allNamespaces, NoHeaders: f.headless,
	}).PrintObj
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

// isNotFound reports that a failure is about an object that is not there.
func isNotFound(err error) bool { return apierrors.IsNotFound(err) }

// only returns the one error that there is, so that it is told as such.
func only(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok && len(joined.Unwrap()) == 1 {
		return joined.Unwrap()[0]
	}
	return err
}
