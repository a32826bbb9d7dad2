// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/resource"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/sandbox"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// applyFlags are those of apply.
type applyFlags struct {
	files     resource.FilenameOptions
	dryRun    string
	overwrite bool
	wait      waitFlags
	print     *genericclioptions.PrintFlags
}

func (f *applyFlags) register(cmd *cobra.Command) {
	f.print = genericclioptions.NewPrintFlags("")
	flags := cmd.Flags()
	flags.StringSliceVarP(&f.files.Filenames, "filename", "f", nil, "`file`, folder or URL with the objects; - is standard input")
	flags.BoolVarP(&f.files.Recursive, "recursive", "R", false, "look into folders of folders, too")
	flags.BoolVar(&f.overwrite, "force-conflicts", false, "take over fields that somebody else has set")
	flags.StringVar(&f.dryRun, "dry-run", "none", "none or server (have the API server validate it, store nothing)")
	flags.BoolVar(&f.wait.wait, "wait", false, "wait until the sandboxes are ready")
	f.wait.register(flags)
	f.print.AddFlags(cmd)
	completeFlag(cmd, "dry-run", oneOf("none", "server"))
}

func (p *program) applyCommand() *cobra.Command {
	var f applyFlags
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Create or change sandboxes and route groups from files, by server-side apply",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.apply(cmd, &f)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f.register(cmd)
	return cmd
}

func (p *program) apply(cmd *cobra.Command, f *applyFlags) error {
	if f.dryRun != "none" && f.dryRun != "server" {
		return usage(cmd, fmt.Errorf("--dry-run=%s is unknown: use none or server", f.dryRun))
	}
	if len(f.files.Filenames) == 0 {
		return usage(cmd, errors.New("-f is missing: the file with the objects, or - for standard input"))
	}
	printer, err := f.print.ToPrinter()
	if err != nil {
		return usage(cmd, err)
	}
	c, err := p.connect()
	if err != nil {
		return err
	}
	b := resource.NewBuilder(p.kube).Unstructured()
	if len(f.files.Filenames) == 1 && f.files.Filenames[0] == "-" {
		text, err := io.ReadAll(p.streams.In)
		if err != nil {
			return fmt.Errorf("read standard input: %w", err)
		}
		b = b.Stream(bytes.NewReader(text), "standard input")
	} else {
		b = b.FilenameParam(p.kube.Namespace != nil && *p.kube.Namespace != "", &f.files)
	}
	infos, err := b.NamespaceParam(c.Namespace).DefaultNamespace().ContinueOnError().Flatten().Do().Infos()
	if err != nil {
		return cluster.Explain(err, "read the objects")
	}
	// All or none: what does not belong here is said before anything is sent.
	for _, info := range infos {
		if gk := info.Mapping.GroupVersionKind.GroupKind(); gk.Group != v1alpha1.Group {
			return &task.Failure{Kind: task.Usage, Message: fmt.Sprintf("%s: %s %s is not one of Sidetrack's objects", info.Source, gk.Kind, info.Name), Remedy: "kubectl apply takes it"}
		}
	}
	for _, info := range infos {
		if err := p.applyOne(info, f, printer.PrintObj); err != nil {
			return err
		}
	}
	if !f.wait.wait || f.dryRun != "none" {
		return nil
	}
	for _, info := range infos {
		if info.Mapping.GroupVersionKind.Kind != v1alpha1.SandboxKind {
			continue
		}
		if _, err := sandbox.Wait(cmd.Context(), c, info.Namespace, info.Name, f.wait.options, p.progress()); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(p.streams.ErrOut, "sandbox/%s ready\n", info.Name); err != nil {
			return err
		}
	}
	return nil
}

func (p *program) applyOne(info *resource.Info, f *applyFlags, printer printObject) error {
	what := strings.ToLower(info.Mapping.GroupVersionKind.Kind) + "/" + info.Name
	text, err := runtime.Encode(unstructured.UnstructuredJSONScheme, info.Object)
	if err != nil {
		return fmt.Errorf("write %s: %w", what, err)
	}
	got, err := resource.NewHelper(info.Client, info.Mapping).
		DryRun(f.dryRun == "server").WithFieldManager(cluster.FieldManager).WithFieldValidation(metav1.FieldValidationStrict).
		Patch(info.Namespace, info.Name, types.ApplyPatchType, text, &metav1.PatchOptions{Force: &f.overwrite})
	switch {
	case apierrors.IsConflict(err):
		return &task.Failure{Message: fmt.Sprintf("cannot apply %s: %v", what, err), Remedy: "leave the field out, or take it over with --force-conflicts", Err: err}
	case err != nil:
		return cluster.Explain(err, "apply "+what)
	}
	if *f.print.OutputFormat != "" {
		return printer(got, p.streams.Out)
	}
	done := "applied"
	if f.dryRun == "server" {
		done += " (server dry run)"
	}
	_, err = fmt.Fprintf(p.streams.Out, "%s %s\n", what, done)
	return err
}
