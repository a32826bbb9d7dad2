// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// bashCompletion is what distributions have bash load, and what cobra's script needs.
const bashCompletion = "/usr/share/bash-completion/bash_completion"

// completes has bash complete the last of these words, as the tabulator does.
const completes = `
source ` + bashCompletion + `
source <(sidetrack completion bash)
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_TYPE=9 COMP_KEY=9
COMP_POINT=${#COMP_LINE}
words=$(complete -p sidetrack) || exit 1
[[ $words =~ -F\ ([^ ]+) ]] || exit 1
compopt() { :; } # there is no line being edited
"${BASH_REMATCH[1]}" sidetrack "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\n' "${COMPREPLY[@]}"
`

func TestBashCompletesCommandsFlagsAndNames(t *testing.T) {
	if _, err := os.Stat(bashCompletion); err != nil {
		if os.Getenv("SIDETRACK_E2E") != "" {
			t.Fatalf("%v: install the package bash-completion", err)
		}
		t.Skip(err)
	}
	ns := namespace(t)
	deployment(t, ns, "route", "app")
	deployment(t, ns, "routing-table", "app")
	deployment(t, ns, "stock", "app")
	sidetrack(t, ns, 0, "sandbox", "create", "pr-42", "--fork", "route", "--image", "route:2")
	sidetrack(t, ns, 0, "sandbox", "create", "pr-43", "--fork", "stock", "--image", "stock:2")
	config, err := plane.Kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	program := builtProgram(t)
	for _, c := range []struct {
		line string // the last word is completed
		want []string
		also bool // there may be more
	}{
		{"sidetrack sandbox cr", []string{"create"}, false},
		{"sidetrack tra", []string{"trace"}, false},
		{"sidetrack trace --fol", []string{"--follow"}, false},
		{"sidetrack -n " + ns + " trace ", []string{"pr-42", "pr-43"}, false},
		{"sidetrack -n " + ns + " trace pr-42 ", nil, false},
		{"sidetrack -n " + ns + " sandbox delete pr-42 ", []string{"pr-43"}, false},
		{"sidetrack -n " + ns + " sandbox create new --fork deploy/rout", []string{"deploy/route", "deploy/routing-table"}, false},
		{"sidetrack trace -n " + ns[:len(ns)-1], []string{ns}, true},
	} {
		cmd := exec.CommandContext(t.Context(), "bash", append([]string{"--norc", "--noprofile", "-c", completes, "bash"}, strings.Split(c.line, " ")...)...)
		cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(program)+":"+os.Getenv("PATH"), "KUBECONFIG="+config, "HOME="+t.TempDir())
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v: %s", c.line, err, out)
		}
		var got []string
		for line := range strings.Lines(string(out)) {
			// Behind the word may be what it means.
			if word, _, _ := strings.Cut(strings.TrimSpace(line), " "); word != "" {
				got = append(got, word)
			}
		}
		slices.Sort(got)
		missing := slices.ContainsFunc(c.want, func(w string) bool { return !slices.Contains(got, w) })
		if missing || !c.also && len(got) != len(c.want) {
			t.Errorf("%s: bash completes %q, want %q", c.line, got, c.want)
		}
	}
}
