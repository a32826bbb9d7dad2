// SPDX-License-Identifier: Apache-2.0

// Package house checks the rules of the repository's layout that a compiler
// does not: which package may import which, that each says what it is for, and
// that each file states its licence. It only reads files.
package house

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/sidetrack-dev/sidetrack"

// mayImport lists, for each tree of packages, which of ours it may import.
// Arrows run one way: cmd -> daemon -> loader, routing; loader -> bpf, routing.
var mayImport = map[string][]string{
	"routing":           {},
	"bpf":               {},
	"api":               {},
	"loader":            {"bpf", "routing"},
	"daemon/ledger":     {"routing", "api", "daemon/ledger"},
	"daemon/conntrack":  {},
	"daemon/sockdiag":   {"daemon/pods"},
	"daemon/flows":      {"routing", "loader", "daemon/pods", "daemon/ledger", "daemon/conntrack", "daemon/sockdiag", "daemon/flows"},
	"daemon/router":     {"routing", "loader", "daemon/router", "daemon/ledger", "daemon/conntrack"},
	"daemon/pods":       {"routing"},
	"daemon/source":     {"routing", "api", "daemon/pods", "daemon/source"},
	"daemon/nodestate":  {"routing", "api"},
	"daemon/metrics":    {"routing", "loader", "daemon/router", "daemon/ledger", "daemon/metrics"},
	"daemon/handover":   {"routing", "daemon/router"},
	"daemon/controller": {"api"},
	"daemon/relay":      {},
	"daemon/agent":      {"routing", "loader", "daemon", "api"},
	"cmd":               {"api", "daemon", "loader", "routing", "cmd/internal"},
	"cmd/sidetrack":     {"api", "cmd/internal", "cmd/sidetrack"},
	"deploy":            {"deploy"},
	"bench":             {"api", "daemon", "loader", "routing", "test/lab", "test/programs", "bench"},
	"test":              {"api", "daemon", "loader", "routing", "bpf", "test", "deploy"},

	"daemon/ledger/page": {}, // files for browsers
}

type goPackage struct {
	ImportPath, Dir, Doc, Name          string
	Imports, TestImports, GoFiles       []string
	TestGoFiles, XTestGoFiles, CgoFiles []string
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json", module+"/...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func under(path, tree string) bool { return path == tree || strings.HasPrefix(path, tree+"/") }

// tree returns the longest entry of mayImport that path is under.
func tree(path string) string {
	best := ""
	for t := range mayImport {
		if under(path, t) && len(t) > len(best) {
			best = t
		}
	}
	return best
}

func TestImportsRunOneWay(t *testing.T) {
	for _, p := range packages(t) {
		path := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		if path == "" {
			continue
		}
		from := tree(path)
		if from == "" {
			t.Errorf("package %s is in no room of the house: add it to mayImport, or move it", path)
			continue
		}
		for _, imp := range p.Imports {
			ours, ok := strings.CutPrefix(imp, module+"/")
			if !ok {
				if path == "routing" && strings.Contains(strings.Split(imp, "/")[0], ".") {
					t.Errorf("routing imports %s: it may import the standard library only", imp)
				}
				if imp == "github.com/cilium/ebpf" && (under(path, "daemon") || under(path, "cmd") || under(path, "routing")) {
					t.Errorf("%s imports %s: only loader and bpf may", path, imp)
				}
				continue
			}
			if !slices.ContainsFunc(mayImport[from], func(to string) bool { return under(ours, to) }) {
				t.Errorf("%s imports %s: %s may import %v of ours", path, ours, from, mayImport[from])
			}
		}
		for _, imp := range p.Imports {
			if path == "routing" && slices.Contains([]string{"log", "log/slog", "os", "net", "io"}, imp) {
				t.Errorf("routing imports %s: it does no I/O and logs nothing", imp)
			}
			if under(path, "loader") && strings.HasPrefix(imp, "k8s.io/") {
				t.Errorf("loader imports %s: it knows nothing of Kubernetes", imp)
			}
			if under(path, "daemon/controller") && strings.HasPrefix(imp, module+"/loader") {
				t.Errorf("the controller imports %s: it never touches the kernel", imp)
			}
		}
	}
}

// TestTheUsersProgramRunsOnAnySystem keeps what only Linux has out of a program
// that runs on people's laptops.
func TestTheUsersProgramRunsOnAnySystem(t *testing.T) {
	for _, system := range []string{"darwin", "windows"} {
		cmd := exec.Command("go", "list", "-deps", "-f", "{{.ImportPath}} {{if .Error}}{{.Error}}{{end}}", module+"/cmd/sidetrack")
		cmd.Env = append(os.Environ(), "GOOS="+system, "CGO_ENABLED=0")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("for %s: %v\n%s", system, err, out)
		}
		for _, name := range strings.Fields(string(out)) {
			ours, ok := strings.CutPrefix(name, module+"/")
			if ok && !under(ours, "cmd/sidetrack") && !under(ours, "cmd/internal") && !under(ours, "api") {
				t.Errorf("for %s: it contains %s", system, ours)
			}
		}
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	for _, p := range packages(t) {
		if slices.Contains([]string{"util", "utils", "common", "helper", "helpers", "misc"}, p.Name) {
			t.Errorf("%s: no package is named %s: name it after what it owns", p.ImportPath, p.Name)
		}
		doc := p.Doc
		for _, f := range append(slices.Clone(p.TestGoFiles), p.XTestGoFiles...) {
			if doc != "" || len(p.GoFiles) > 0 {
				break
			}
			if file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.ParseComments|parser.PackageClauseOnly); err == nil && file.Doc != nil {
				doc = file.Doc.Text()
			}
		}
		if doc == "" {
			t.Errorf("%s has no package comment: say what it owns, what it never does, and what may be called concurrently", p.ImportPath)
		}
	}
}

var spdx = map[string]*regexp.Regexp{
	".go":  regexp.MustCompile(`(?m)^// SPDX-License-Identifier: Apache-2\.0$`),
	".c":   regexp.MustCompile(`\A(//|/\*) SPDX-License-Identifier: \(?(GPL-2\.0-only OR BSD-2-Clause|LGPL-2\.1 OR BSD-2-Clause)\)?`),
	".h":   regexp.MustCompile(`\A(//|/\*) SPDX-License-Identifier: \(?(GPL-2\.0-only OR BSD-2-Clause|LGPL-2\.1 OR BSD-2-Clause)\)?`),
	".sh":  regexp.MustCompile(`(?m)^# SPDX-License-Identifier: Apache-2\.0$`),
	".js":  regexp.MustCompile(`\A// SPDX-License-Identifier: Apache-2\.0\n`), // .mjs are others' modules
	".css": regexp.MustCompile(`\A/\* SPDX-License-Identifier: Apache-2\.0 \*/\n`),
}

var generated = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

func TestEveryFileStatesItsLicence(t *testing.T) {
	for _, name := range tracked(t) {
		want := spdx[filepath.Ext(name)]
		if want == nil {
			continue
		}
		text, err := os.ReadFile(filepath.Join("..", "..", name))
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted, not committed yet
		}
		if err != nil {
			t.Fatal(err)
		}
		if !want.Match(text) && !generated.Match(text) {
			t.Errorf("%s: no SPDX line like %q", name, want)
		}
	}
}

// TestTheTopLevelIsAsAgreed keeps the layout the explanation.
func TestTheTopLevelIsAsAgreed(t *testing.T) {
	agreed := []string{"cmd", "bpf", "daemon", "routing", "loader", "deploy", "bench", "go.mod", "go.sum", "Makefile", "README.md",
		"api", "docs", "test", "LICENSE", "CHANGELOG.md"}
	for _, name := range tracked(t) {
		top, _, _ := strings.Cut(name, "/")
		if !strings.HasPrefix(top, ".") && !slices.Contains(agreed, top) {
			t.Errorf("%s: the top level has %v and dotfiles only", name, agreed)
		}
	}
}

// TestNothingBuiltIsCommitted finds binaries and whatever is too large. The BPF
// objects are committed on purpose, so that nobody needs clang.
func TestNothingBuiltIsCommitted(t *testing.T) {
	for _, name := range tracked(t) {
		text, err := os.ReadFile(filepath.Join("..", "..", name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		object := under(name, "bpf") && strings.HasSuffix(name, ".o")
		if bytes.HasPrefix(text, []byte("\x7fELF")) && !object {
			t.Errorf("%s is a binary: do not commit what is built", name)
		}
		if len(text) > 1<<20 {
			t.Errorf("%s has %d bytes: what is that large does not belong here", name, len(text))
		}
	}
}

func tracked(t *testing.T) []string {
	t.Helper()
	cmd := exec.Command("git", "ls-files", "--cached", "--others", "--exclude-standard")
	cmd.Dir = filepath.Join("..", "..")
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("not a git checkout: %v", err)
	}
	return strings.Fields(string(out))
}
