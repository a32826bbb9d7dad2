// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// Explain makes a failure of an error that has come of talking to the API server:
// what was being done, the server's own words, and what to do next. doing is an
// infinitive, such as "create Sandbox pr-42". An error that is a failure already
// stays what it is, and nil stays nil.
func Explain(err error, doing string) error {
	var f *task.Failure
	if err == nil || errors.As(err, &f) {
		return err
	}
	err = first(err)
	f = &task.Failure{Message: fmt.Sprintf("cannot %s: %s", doing, ownWords(err)), Err: err}
	var status apierrors.APIStatus
	var network net.Error
	var file *fs.PathError
	switch {
	case errors.Is(err, context.Canceled):
		f.Message = "interrupted: could not " + doing
	case errors.Is(err, context.DeadlineExceeded), apierrors.IsTimeout(err), apierrors.IsServerTimeout(err):
		f.Kind, f.Remedy = task.NotReady, "the API server takes too long to answer: try again"
	case isMissingKind(err):
		f.Remedy = "Sidetrack is not installed in this cluster: kubectl apply --server-side -f deploy/install.yaml, then sidetrack doctor"
	case apierrors.IsForbidden(err):
		f.Remedy = forbidden(err)
	case apierrors.IsUnauthorized(err):
		f.Remedy = "log in to the cluster again, or choose another user with --context, --user or --token"
	case clientcmd.IsEmptyConfig(err):
		f.Remedy = "say which cluster with --kubeconfig or --context, or set KUBECONFIG"
	case isMissingNamespace(err):
		f.Remedy = missing
	case errors.As(err, &status): // The server has said what is wrong.
	case errors.As(err, &file): // So does what it has come of, and that is no network.
	case errors.As(err, &network):
		f.Remedy = "see whether the API server can be reached: kubectl version; --context chooses another cluster"
	}
	return f
}

// first is the first of several errors that client-go has put together in a way that
// errors.As does not see through.
func first(err error) error {
	for {
		all, ok := err.(utilerrors.Aggregate)
		if !ok || len(all.Errors()) == 0 {
			return err
		}
		err = all.Errors()[0]
	}
}

const missing = "create it, or choose another namespace with -n"

// isMissingNamespace reports that it is a namespace that is not there, and not what was
// asked for.
func isMissingNamespace(err error) bool {
	var status apierrors.APIStatus
	if !apierrors.IsNotFound(err) || !errors.As(err, &status) {
		return false
	}
	d := status.Status().Details
	return d != nil && d.Group == "" && (d.Kind == "namespaces" || d.Kind == "Namespace")
}

// NoNamespace says, as a failure, that a namespace is not there; nil also where the
// user may not look.
func (c *Cluster) NoNamespace(ctx context.Context, name string) error {
	_, err := c.Core.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
	if !isMissingNamespace(err) {
		return nil
	}
	return &task.Failure{Message: "there is no namespace " + name, Remedy: missing, Err: err}
}

// NotThere says, as a failure, that an object is not there, as the API server's err says,
// nor perhaps its namespace; others are the names of those of its kind that are, in words.
func (c *Cluster) NotThere(ctx context.Context, err error, kind string, key client.ObjectKey, others string) error {
	f := &task.Failure{Message: fmt.Sprintf("there is no %s %s in namespace %s", kind, key.Name, key.Namespace), Remedy: missing, Err: err}
	if others != "" {
		f.Remedy = "there are " + others + "; -n chooses another namespace"
		return f
	}
	if none := c.NoNamespace(ctx, key.Namespace); none != nil {
		return none
	}
	return f
}

// ownWords is what the server says, without what every one of its errors says.
func ownWords(err error) string {
	s := err.Error()
	var status apierrors.APIStatus
	if errors.As(err, &status) && status.Status().Message != "" {
		s = status.Status().Message
	}
	return strings.TrimSpace(s)
}

// isMissingKind reports that the API server does not know a kind of ours.
func isMissingKind(err error) bool {
	var status apierrors.APIStatus
	if meta.IsNoMatchError(err) {
		return strings.Contains(err.Error(), v1alpha1.Group)
	}
	if !apierrors.IsNotFound(err) || !errors.As(err, &status) {
		return false
	}
	// The path is unknown, and not the object: there is no name.
	d := status.Status().Details
	return d == nil || d.Name == "" && (d.Group == "" || strings.HasSuffix(d.Group, v1alpha1.Group))
}

func forbidden(err error) string {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		if d := status.Status().Details; d != nil && d.Group == v1alpha1.Group {
			return "ask for ClusterRole edit in the namespace, which has it by sidetrack-edit, or view to look only; sidetrack doctor says what else is missing"
		}
	}
	return "ask whoever runs the cluster for it; sidetrack doctor says what else is missing"
}
