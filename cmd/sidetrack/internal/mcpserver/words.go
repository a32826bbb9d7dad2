// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// mostDetail is how many bytes of what is known beyond a failure's message are
// told.
const mostDetail = 6 << 10

// toolError is why a tool has failed, for a model to read.
type toolError struct {
	tool string
	err  error
}

func (e *toolError) Error() string {
	if errors.Is(e.err, context.Canceled) {
		return e.tool + ": cancelled"
	}
	var f *task.Failure
	if !errors.As(e.err, &f) {
		f = &task.Failure{Message: e.err.Error()}
	}
	message := f.Message
	// Whoever has wrapped it has something to say, too.
	if before, ok := strings.CutSuffix(e.err.Error(), f.Error()); ok {
		message = before + message
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s failed: %s", e.tool, asTools(message))
	if len(f.Details) > 0 {
		b.WriteString("\n" + cut(strings.Join(f.Details, "\n"), mostDetail))
	}
	remedy := asTools(f.Remedy)
	if remedy == "" && f.Kind == task.Usage {
		remedy = "mend the arguments and call " + e.tool + " again"
	}
	if remedy != "" {
		b.WriteString("\nnext: " + remedy)
	}
	return b.String()
}

// asTools puts what the packages beside this one say of the command line into
// words for somebody who has tools instead.
func asTools(text string) string { return spoken.Replace(text) }

var spoken = strings.NewReplacer(
	"change it with --update, delete it first, or take another name", "call create_sandbox with update: true to change it, call delete_sandbox first, or take another name",
	"mend it with sidetrack sandbox create --update", "mend it with create_sandbox and update: true",
	"create it, or choose another namespace with -n", "call list_sandboxes to see what there is; name one in another namespace as namespace/name",
	"; -n chooses another namespace", "; one in another namespace is named namespace/name",
	"look for it in other namespaces (-n), or create it first", "call list_workloads to see what can be forked, also in another namespace",
	"see its metadata.finalizers, and wait longer with --timeout", "call sandbox_status in a while",
	"say which cluster with --kubeconfig or --context, or set KUBECONFIG", "the server has no cluster: its settings need --kubeconfig, --context or the environment variable KUBECONFIG",
	"--context chooses another cluster", "the server's --context chooses another cluster",
	"with --context, --user or --token", "with the server's --context, --user or --token",
	"add --fork WORKLOAD", "add an entry to forks",
)

// cut shortens text to so many bytes and says so.
func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	n := most
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return fmt.Sprintf("%s… (%d of %d bytes)", text[:n], n, len(text))
}

// handle is how a sandbox is named in replies.
func handle(namespace, name string) string { return namespace + "/" + name }

// parseHandle reads NAME or NAMESPACE/NAME.
func parseHandle(text string) (namespace, name string, err error) {
	namespace, name, ok := strings.Cut(text, "/")
	if !ok {
		namespace, name = "", text
	}
	if name == "" || ok && namespace == "" || strings.Contains(name, "/") {
		return "", "", task.Usagef("%q does not name a sandbox: write its name, such as pr-42, or namespace/name", text)
	}
	return namespace, name, nil
}
