// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// bashCompletion is what distributions have bash load, and what cobra's script needs.
const bashCompletion = "/usr/share/bash-completion/bash_completion"

// shells are those whose completion is tried: how each of them completes the line in
// $LINE, when it has loaded the script of the program whose name is the first word.
var shells = []struct {
	name string
	// needs is a file that comes with it.
	needs, pack string
	args        []string
}{
	// As the tabulator calls the function that completes.
	{"bash", bashCompletion, "bash-completion", []string{"--norc", "--noprofile", "-c", `
source ` + bashCompletion + `
IFS=' ' read -ra COMP_WORDS <<<"$LINE"
[[ $LINE != *' ' ]] || COMP_WORDS+=('')
program=${COMP_WORDS[0]}
source <("$program" completion bash)
COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_LINE=$LINE COMP_POINT=${#LINE} COMP_TYPE=9 COMP_KEY=9
words=$(complete -p "$program") || exit 1
[[ $words =~ -F\ ([^ ]+) ]] || exit 1
compopt() { :; } # there is no line being edited
"${BASH_REMATCH[1]}" "$program" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\n' "${COMPREPLY[@]}"
`}},
	// Its line editor wants a terminal. It completes as soon as it has a line, and what
	// it is about to offer is written down.
	{"zsh", "/usr/share/zsh/functions/Completion/compinit", "zsh", []string{"-f", "-c", `
zmodload zsh/zpty
export ZDOTDIR=$HOME FOUND=$HOME/found
cat >$ZDOTDIR/.zshrc <<'END'
autoload -Uz compinit && compinit -D -u
source <(${LINE%% *} completion zsh)
compadd() {
	# Functions ask by these options what would be offered.
	if [[ ${@[1,(i)(-|--)]} != *-(O|A|D)\ * ]]; then
		local -a found
		builtin compadd -A found "$@"
		print -rl -- $found >>$FOUND
	fi
	builtin compadd "$@"
}
zle-line-init() {
	BUFFER=$LINE CURSOR=$#LINE
	zle complete-word
	exit
}
zle -N zle-line-init
END
zpty shell zsh -i
while zpty -r shell; do :; done >$HOME/terminal
[[ ! -e $FOUND ]] || cat $FOUND
`}},
	{"fish", "/usr/share/fish/config.fish", "fish", []string{"--no-config", "-c", `
set program (string split ' ' $LINE)[1]
$program completion fish | source
complete -C "$LINE"
`}},
}

// completed has a shell complete a line, whose program is in a folder, and returns the
// words that it offers.
func completed(t *testing.T, shell, folder, kubeconfig, line string) []string {
	t.Helper()
	i := slices.IndexFunc(shells, func(s struct {
		name        string
		needs, pack string
		args        []string
	},
	) bool {
		return s.name == shell
	})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, shell, shells[i].args...)
	cmd.Env = append(os.Environ(), "PATH="+folder+":"+os.Getenv("PATH"), "KUBECONFIG="+kubeconfig, "HOME="+t.TempDir(), "TERM=dumb", "LINE="+line)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %s: %v: %s", shell, line, err, out)
	}
	var got []string
	for text := range strings.Lines(string(out)) {
		// Behind the word may be what it means.
		if word := strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(" \t\n", r) }); len(word) > 0 {
			got = append(got, word[0])
		}
	}
	slices.Sort(got)
	return got
}

// eachShell runs a test in the shells that there are. Where the suite runs as a whole
// all have to be.
func eachShell(t *testing.T, test func(t *testing.T, shell string)) {
	for _, s := range shells {
		t.Run(s.name, func(t *testing.T) {
			if _, err := os.Stat(s.needs); err != nil {
				if os.Getenv("SIDETRACK_E2E") != "" {
					t.Fatalf("%v: install the package %s", err, s.pack)
				}
				t.Skip(err)
			}
			test(t, s.name)
		})
	}
}

// completionCase is a line, of which the last word is completed.
type completionCase struct {
	line string
	want []string
	also bool // there may be more
}

func (c *completionCase) check(t *testing.T, got []string) {
	t.Helper()
	missing := slices.ContainsFunc(c.want, func(w string) bool { return !slices.Contains(got, w) })
	if missing || !c.also && len(got) != len(c.want) {
		t.Errorf("%q is completed with %q, want %q", c.line, got, c.want)
	}
}

func TestShellsCompleteCommandsFlagsValuesAndNames(t *testing.T) {
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
	folder := filepath.Dir(builtProgram(t))
	eachShell(t, func(t *testing.T, shell string) {
		for _, c := range []completionCase{
			{"sidetrack sandbox cr", []string{"create"}, false},
			{"sidetrack tra", []string{"trace"}, false},
			{"sidetrack trace --fol", []string{"--follow"}, false},
			{"sidetrack -n " + ns + " trace ", []string{"pr-42", "pr-43"}, false},
			{"sidetrack -n " + ns + " trace pr-42 ", nil, false},
			{"sidetrack -n " + ns + " sandbox delete pr-42 ", []string{"pr-43"}, false},
			{"sidetrack -n " + ns + " sandbox create new --fork deploy/rout", []string{"deploy/route", "deploy/routing-table"}, false},
			{"sidetrack trace -n " + ns[:len(ns)-1], []string{ns}, true},
			{"sidetrack trace pr-42 -o ", []string{"json", "yaml", "kyaml", "jsonpath", "jsonpath-as-json", "jsonpath-file", "wide", "name"}, false},
			{"sidetrack explain pr-42 -o w", []string{"wide"}, false},
			{"sidetrack sandbox delete pr-42 -o ", []string{"name"}, false},
		} {
			c.check(t, completed(t, shell, folder, config, c.line))
		}
	})
}
