// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"
)

// used are commands that have formats, with as much as they need to get as far as
// looking for a cluster.
var used = map[string]struct {
	args    string
	formats string // beside json, yaml, kyaml and those of JSONPath
}{
	"sandbox create": {"a", "name go-template go-template-file template templatefile"},
	"sandbox apply":  {"-f x", "name go-template go-template-file template templatefile"},
	"sandbox get":    {"", "name wide go-template go-template-file template templatefile"},
	"sandbox list":   {"", "name wide go-template go-template-file template templatefile"},
	"sandbox wait":   {"a", "name go-template go-template-file template templatefile"},
	"sandbox delete": {"a", "name only"},
	"status":         {"", "name wide"},
	"trace":          {"a", "name wide"},
	"explain":        {"a", "wide"},
	"doctor":         {"", "wide"},
	"diff":           {"--sandbox a http://a/", ""},
	"version":        {"", ""},
}

// value is what a format needs.
func value(t *testing.T, format string) string {
	t.Helper()
	text := map[string]string{"jsonpath": "{.a}", "jsonpath-as-json": "{.a}", "jsonpath-file": "{.a}", "go-template": "{{.a}}", "template": "{{.a}}", "go-template-file": "{{.a}}", "templatefile": "{{.a}}"}[format]
	if strings.HasSuffix(format, "file") {
		name := filepath.Join(t.TempDir(), "template")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		text = name
	}
	if text == "" {
		return format
	}
	return format + "=" + text
}

// TestACommandHasTheFormatsThatItOffers: what completion offers is what is taken, and of
// the rest it is said what to use.
func TestACommandHasTheFormatsThatItOffers(t *testing.T) {
	all := strings.Fields("json yaml kyaml name wide jsonpath jsonpath-as-json jsonpath-file go-template go-template-file template templatefile csv")
	seen := map[string]bool{}
	root := newProgram(t.Context(), "sidetrack", "test", genericiooptions.NewTestIOStreamsDiscard()).command()
	var visit func(*cobra.Command)
	visit = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
		if cmd.Flags().Lookup("output") == nil {
			return
		}
		path := strings.TrimPrefix(cmd.CommandPath(), "sidetrack ")
		c, ok := used[path]
		if seen[path] = true; !ok {
			t.Errorf("%s has formats that this test does not know of", path)
			return
		}
		want := strings.Fields("json yaml kyaml jsonpath jsonpath-as-json jsonpath-file " + c.formats)
		if strings.HasSuffix(c.formats, " only") {
			want = strings.Fields(strings.TrimSuffix(c.formats, " only"))
		}
		words := strings.Fields(path)
		_, out, _ := runProgram(t, append(append([]string{"sidetrack", "__complete"}, words...), "-o", "")...)
		var offered []string
		for line := range strings.Lines(out) {
			if !strings.HasPrefix(line, ":") {
				offered = append(offered, strings.TrimSpace(line))
			}
		}
		slices.Sort(offered)
		slices.Sort(want)
		if d := cmp.Diff(want, offered); d != "" {
			t.Errorf("%s: completion of -o (-want +got):\n%s", path, d)
		}
		for _, format := range all {
			args := slices.Concat([]string{"sidetrack"}, words, strings.Fields(c.args), []string{"-o", value(t, format)})
			status, _, said := runProgram(t, args...)
			refused := status == exitUsage && strings.HasPrefix(said, "sidetrack: -o "+format) && strings.Contains(said, "next: use ") && strings.Contains(said, "sidetrack "+path)
			if refused == slices.Contains(want, format) {
				t.Errorf("%s -o %s: exit status %d: %s", path, format, status, said)
			}
		}
	}
	visit(root)
	for path := range used {
		if !seen[path] {
			t.Errorf("%s has no formats", path)
		}
	}
}

func TestAFormatThatIsNoneIsToldWithTheRemedy(t *testing.T) {
	for args, want := range map[string]string{
		"explain a -o name":                    "-o name: what sidetrack explain prints has no names\nnext: use json, yaml, kyaml, jsonpath, jsonpath-as-json, jsonpath-file or wide, or leave -o out\n",
		"sandbox create a -o wide":             "-o wide: sidetrack sandbox create prints no table that could be wider\nnext: use ",
		"sandbox delete a -o json":             "-o json: sidetrack sandbox delete has no such format\nnext: use name, or leave -o out\n",
		"sandbox get -o jsonpath":              "-o jsonpath: template format specified but no template given\nnext: use ",
		"sandbox get -o go-template={{.x":      "-o go-template={{.x: error parsing template",
		"status --output=":                     `-o "": sidetrack status has no such format`,
		"sandbox wait a --for=deleted -o yaml": "-o yaml: there is no object left after --for=deleted\nnext: use -o name, or leave -o out\n",
		"sandbox list --output-watch-events":   "--output-watch-events goes with --watch only",
		"status a -A":                          "a sandbox cannot be named with --all-namespaces: use -n",
	} {
		status, _, said := runProgram(t, append([]string{"sidetrack"}, strings.Fields(args)...)...)
		if status != exitUsage || !strings.HasPrefix(said, "sidetrack: "+want) {
			t.Errorf("%s: exit status %d: %s", args, status, said)
		}
	}
}

func TestAResultIsPrintedInEachFormat(t *testing.T) {
	type part struct {
		Name string `json:"name"`
	}
	for _, c := range []struct {
		format string
		x      any
		want   string
	}{
		{"json", []part{{"<a>"}}, "[\n    {\n        \"name\": \"<a>\"\n    }\n]\n"},
		{"yaml", []part{{"a"}, {"b"}}, "- name: a\n- name: b\n---\n- name: a\n- name: b\n"},
		{"jsonpath={.name}", part{"a"}, "aa"},
		{"jsonpath={[*].name}", []part{{"a"}, {"b"}}, "a ba b"},
	} {
		o := resultOutput()
		o.register(&cobra.Command{Use: "x"})
		o.format = c.format
		var b bytes.Buffer
		cmd := &cobra.Command{Use: "x"}
		cmd.Flags().String("output", "", "")
		if err := o.check(cmd); err != nil {
			t.Fatal(err)
		}
		if printed, err := o.result(&b, c.x); !printed || err != nil {
			t.Fatalf("%s: %t %v", c.format, printed, err)
		}
		// Of a stream, the documents are apart.
		if c.format != "json" {
			if _, err := o.result(&b, c.x); err != nil {
				t.Fatal(err)
			}
		}
		if b.String() != c.want {
			t.Errorf("%s: %q, want %q", c.format, b.String(), c.want)
		}
	}
}

// TestTheExitStatusesAreDocumented compares the table in docs/cli.md with those that
// there are.
func TestTheExitStatusesAreDocumented(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "..", "docs", "cli.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "\n| exit status | |\n")
	table, _, _ = strings.Cut(table, "\n\n")
	var got []string
	for _, m := range regexp.MustCompile(`(?m)^\| (\d+) \|`).FindAllStringSubmatch(table, -1) {
		got = append(got, m[1])
	}
	var want []string
	for _, code := range []int{exitOK, exitFailed, exitUsage, exitNotReady, exitDifferent, exitUnverified, exitRunTimeout, exitNotRun, exitInterrupted, exitUnread} {
		want = append(want, fmt.Sprint(code))
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("docs/cli.md (-want +got):\n%s", d)
	}
}
