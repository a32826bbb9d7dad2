// SPDX-License-Identifier: Apache-2.0

// Package conformance runs other people's suites for HTTP/2, gRPC and Connect
// through the request router and directly, and compares what each case gives:
// grpc-go's interoperability tests, connect's conformance suite, h2spec, and
// calls by grpc-go, Python's grpcio and Node's @grpc/grpc-js.
//
// A suite runs over several ways (see way) in one world of namespaces: past
// Sidetrack, through the router to the baseline, and through the router to a fork.
// A server runs only where a way has to end, so a request that goes astray finds
// nobody. What a case gives directly is what it must give on the other ways;
// every difference is a failure, and a table shows them.
//
// It owns the programs that it starts. Their versions are pinned below programs/,
// and they are built into a cache outside the checkout the first time. It never
// looks inside sidetrackd. One world at a time: no test here may call t.Parallel.
//
// The environment: SIDETRACKD names a binary to test instead of building one;
// with SIDETRACK_REQUIRE_CLIENTS=1 a program that is missing is a failure.
package conformance

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/lab"
	"github.com/sidetrack-dev/sidetrack/test/programs"
)

var buildDir string

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == shimArg {
		os.Exit(runShim(os.Args[2:]))
	}
	var err error
	if buildDir, err = os.MkdirTemp("", "sidetrack-conformance-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := os.RemoveAll(buildDir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// build returns the path of the binary under test.
var build = sync.OnceValues(func() (string, error) { return programs.Agent(buildDir) })

// The modules below programs/, each with the packages of its programs.
var modules = map[string]map[string]string{
	"grpc": {
		"interop-client": "google.golang.org/grpc/interop/client",
		"interop-server": "google.golang.org/grpc/interop/server",
		"calls":          "./calls",
	},
	"connect": {
		"connectconformance": "connectrpc.com/conformance/cmd/connectconformance",
		"referenceclient":    "connectrpc.com/conformance/cmd/referenceclient",
		"referenceserver":    "connectrpc.com/conformance/cmd/referenceserver",
	},
	"h2spec": {
		"h2spec": "github.com/summerwind/h2spec/cmd/h2spec",
	},
}

// program returns the path of one of a module's programs, built when the cache
// does not have it.
func program(t *testing.T, module, name string) string {
	t.Helper()
	pkg, ok := modules[module][name]
	if !ok {
		t.Fatalf("module %s has no program %s", module, name)
	}
	dir, err := filepath.Abs(filepath.Join("programs", module))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	path, err := programs.Module{Dir: dir}.Cached(ctx, "conformance", name, pkg)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// heavy keeps a test out of short runs.
func heavy(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes long; left out with -short")
	}
}

// eventually waits until f is content.
func eventually(t *testing.T, patience time.Duration, f func() error) {
	t.Helper()
	for end := time.Now().Add(lab.Patience(patience)); ; time.Sleep(20 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after %s: %v", patience, err)
		}
	}
}
