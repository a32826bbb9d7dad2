// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// kubectl and "sidetrack doctor" stay: for these there are no tools.
var kubectl = regexp.MustCompile(`kubectl [^;]*`)

// ofTheCommandLine is what else only somebody with a terminal can do.
var ofTheCommandLine = regexp.MustCompile(`(^|[^'s]) --[a-z]|(^|[ (])-n\b|sidetrack (sandbox|logs|trace|run|proxy|diff|explain|status)\b`)

// The packages that do the tasks speak of the command line, whose flags a model has
// not. Whatever they say is put into words of tools.
func TestEverythingThatTasksSayIsPutIntoWordsOfTools(t *testing.T) {
	found := 0
	for _, pkg := range []string{"cluster", "compare", "exchange", "explain", "hops", "podlog", "proof", "runner", "sandbox", "tunnel"} {
		files, err := filepath.Glob(filepath.Join("..", pkg, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("package %s: %v, %d files", pkg, err, len(files))
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			tree, err := parser.ParseFile(token.NewFileSet(), file, text, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(tree, func(n ast.Node) bool {
				lit, ok := n.(*ast.BasicLit)
				if !ok || lit.Kind != token.STRING {
					return true
				}
				s, err := strconv.Unquote(lit.Value)
				s = kubectl.ReplaceAllString(s, "kubectl")
				// An argument of a program is no sentence.
				if err != nil || !ofTheCommandLine.MatchString(s) || !strings.Contains(strings.TrimSpace(s), " ") {
					return true
				}
				found++
				// What is joined to it in the code is a name.
				if got := asTools(s + "NAME"); ofTheCommandLine.MatchString(got) {
					t.Errorf("%s: %q\nis told as %q", file, s, got)
				}
				return true
			})
		}
	}
	if found < 5 {
		t.Errorf("only %d sentences speak of the command line: this test looks for the wrong thing", found)
	}
}
