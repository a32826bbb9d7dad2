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
	output    *output
}

func (f *applyFlags) register(cmd *cobra.Command) {
	f.output = objectOutput()
	flags := cmd.Flags()
	flags.StringSliceVarP(&f.files.Filenames, "filename", "f", nil, "`file`, folder or URL with the objects; - is standard input")
	flags.BoolVarP(&f.files.Recursive, "recursive", "R", false, "look into folders of folders, too")
	flags.BoolVar(&f.overwrite, "force-conflicts", false, "take over fields that somebody else has set")
	flags.StringVar(&f.dryRun, "dry-run", "none", "none or server (have the API server validate it, store nothing)")
	flags.BoolVar(&f.wait.wait, "wait", false, "wait until the sandboxes are ready")
	f.wait.register(flags)
	f.output.register(cmd)
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
		return usage(cmd, fmt.Errorf("--dry-run=%s does not go with server-side apply: use none or server", f.dryRun))
	}
	if len(f.files.Filenames) == 0 {
		return usage(cmd, errors.New("-f is missing: the file with the objects, or - for standard input"))
	}
	if err := f.output.check(cmd); err != nil {
		return err
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
	if err != nil && cmd.Context().Err() != nil {
		err = cmd.Context().Err() // cli-runtime may have kept its words alone
	}
	if err != nil {
		return cluster.Explain(err, "read the objects")
	}
	// All or none: what does not belong here is said before anything is sent.
	for _, info := range infos {
		if gk := info.Mapping.GroupVersionKind.GroupKind(); gk.Group != v1alpha1.Group {
			return &task.Failure{Kind: task.Usage, Message: fmt.Sprintf("%s: %s %s is not one of Sidetrack's objects", info.Source, gk.Kind, info.Name), Remedy: "kubectl apply takes it"}
		}
	}
	applied, err := 0, error(nil)
	for _, info := range infos {
		if err = p.applyOne(info, f); err != nil {
			break
		}
		applied++
	}
	if err == nil && f.wait.wait && f.dryRun == "none" {
		err = p.awaitAll(cmd, c, infos, &f.wait)
	}
	// What has been applied is printed, whatever has become of the rest.
	if applied > 0 {
		_, failed := f.output.object(p.streams.Out, together(infos[:applied]))
		err = errors.Join(err, failed)
	}
	return only(err)
}

// awaitAll waits for the sandboxes among what has been applied.
func (p *program) awaitAll(cmd *cobra.Command, c *cluster.Cluster, infos []*resource.Info, f *waitFlags) error {
	for _, info := range infos {
		if info.Mapping.GroupVersionKind.Kind != v1alpha1.SandboxKind {
			continue
		}
		sb, err := sandbox.Wait(cmd.Context(), c, info.Namespace, info.Name, f.options, p.progress())
		if err != nil {
			return err
		}
		if err := asRead(sb, info); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(p.streams.ErrOut, "sandbox/%s ready\n", info.Name); err != nil {
			return err
		}
	}
	return nil
}

// asRead has an info be about a sandbox as it is now.
func asRead(sb *v1alpha1.Sandbox, info *resource.Info) error {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(sb)
	if err != nil {
		return fmt.Errorf("read sandbox %s: %w", sb.Name, err)
	}
	u := &unstructured.Unstructured{Object: content}
	u.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(v1alpha1.SandboxKind))
	info.Object = u
	return nil
}

// applyOne applies an object, which becomes what the API server has made of it, and
// says so unless it is to be printed.
func (p *program) applyOne(info *resource.Info, f *applyFlags) error {
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
	info.Object = got
	if f.output.printer != nil {
		return nil
	}
	done := "applied"
	if f.dryRun == "server" {
		done += " (server dry run)"
	}
	_, err = fmt.Fprintf(p.streams.Out, "%s %s\n", what, done)
	return err
}
