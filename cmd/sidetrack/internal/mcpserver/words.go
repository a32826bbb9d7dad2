// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"context"
	"errors"
	"fmt"
	"regexp"
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
	// redact takes secrets out.
	redact func(string) string
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
		b.WriteString("\n" + cut(e.redact(strings.Join(f.Details, "\n")), mostDetail))
	}
	remedy := asTools(f.Remedy)
	if remedy == "" && f.Kind == task.Usage {
		remedy = "mend the arguments and call " + e.tool + " again"
	}
	if remedy != "" {
		b.WriteString("\nnext: " + remedy)
	}
	return e.redact(b.String())
}

// asTools puts what the packages beside this one say of the command line into
// words for somebody who has tools instead.
func asTools(text string) string {
	for _, w := range spoken {
		text = w.from.ReplaceAllString(text, w.to)
	}
	return text
}

type phrase struct {
	from *regexp.Regexp
	to   string
}

// said is a phrase in which a word that stands for a name is <>.
func said(from, to string) phrase {
	return phrase{regexp.MustCompile(strings.ReplaceAll(regexp.QuoteMeta(from), "<>", `(\S+)`)), to}
}

var spoken = []phrase{
	said("change it with --update, delete it first, or take another name", "call create_sandbox with update: true to change it, call delete_sandbox first, or take another name"),
	said("mend it with sidetrack sandbox create --update", "mend it with create_sandbox and update: true"),
	said("create it, or choose another namespace with -n", "call list_sandboxes to see what there is; name one in another namespace as namespace/name"),
	said("; -n chooses another namespace", "; one in another namespace is named namespace/name"),
	said("look for it in other namespaces (-n), or create it first", "call list_workloads to see what can be forked, also in another namespace"),
	said("see its metadata.finalizers, and wait longer with --timeout", "call sandbox_status in a while"),
	said("say which cluster with --kubeconfig or --context, or set KUBECONFIG", "the server has no cluster: give it the server's --kubeconfig or the server's --context, or set KUBECONFIG"),
	said("; --context chooses another cluster", "; the server's --context chooses another cluster"),
	said("or choose another user with --context, --user or --token", "or have the server's settings choose another user"),
	said("create it anew: sidetrack sandbox create <>", "call create_sandbox for it again"),
	said(", with a longer --ttl", ", with a longer ttl"),
	said("add --fork WORKLOAD", "add an entry to forks"),
	said("; sidetrack doctor says what the agents have", ""),
	said("name its image with --agent-image or", "name its image with the server's --agent-image or"),
	said("sidetrack logs <> -n <> has", "sandbox_logs of $2/$1 has"),
	said("sidetrack logs <>", "sandbox_logs of $1"),
	said("sidetrack sandbox wait <>", "sandbox_status of $1 with wait_seconds"),
	said("that sidetrack sandbox key <> --header prints", "that sandbox_status of $1 tells with show_routing_key: true"),
	said("redirect it with --redirect <>", "redirect it with redirects of create_sandbox"),
	said("send one, and see who was called: sidetrack trace <>", "send one with send_request to $1, which tells who was called"),
	said("sidetrack sandbox create … --observe '*' --update", `create_sandbox with update: true and observe: ["*"]`),
	said("sidetrack sandbox create … --observe SERVICE --update", "create_sandbox with update: true and observe"),
	said("let the trace stand for the key: --propagate TraceID", "let the trace stand for the key: create_sandbox with update: true and heal: true"),
	said(": see them with --limit or --since", ""),
	said("give it more with --timeout", "give it more with timeout_seconds"),
	said("; --keep leaves the pod to be looked at", ""),
	said("sidetrack status says which nodes are covered; --no-coverage-check starts the command all the same, and its requests may reach the baseline", "explain_routing says which nodes are covered"),
	said("sidetrack status says which nodes are covered; --agent-image names", "explain_routing says which nodes are covered; the server's --agent-image names"),
}

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
