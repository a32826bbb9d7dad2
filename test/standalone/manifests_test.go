// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"errors"

	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// TestAChangeIsInForceWithinASecond however the file is written, in the kernel
// and in the router. One slow moment of the machine is forgiven: the fastest of
// three counts.
func TestAChangeIsInForceWithinASecond(t *testing.T) {
	s := newShop(t)
	s.serveSeen()
	s.start()
	good := func(fork string) string {
		return sandbox("a", keyA, redirects("web", "web-"+fork))
	}
	path := filepath.Join(s.dir, "sandbox-a.yaml")
	for name, change := range map[string]func(fork string){
		"renamed into place": func(fork string) { put(t, s.dir, "sandbox-a.yaml", good(fork)) },
		"written in place": func(fork string) {
			if err := os.WriteFile(path, []byte(good(fork)), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"deleted and made again": func(fork string) {
			drop(t, s.dir, "sandbox-a.yaml")
			put(t, s.dir, "sandbox-a.yaml", good(fork))
		},
		"moved to another file": func(fork string) {
			put(t, s.dir, "other.yaml", good(fork))
			drop(t, s.dir, "sandbox-a.yaml")
			time.Sleep(1500 * time.Millisecond)
			put(t, s.dir, "sandbox-a.yaml", good(fork))
			drop(t, s.dir, "other.yaml")
		},
		"written slowly": func(fork string) {
			text := good(fork)
			for _, part := range []string{text[:20], text[:60], text[:len(text)-10], text} {
				if err := os.WriteFile(path, []byte(part), 0o600); err != nil {
					t.Fatal(err)
				}
				time.Sleep(30 * time.Millisecond)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			fastest := time.Hour
			for _, fork := range []string{"b", "a", "b", "a"} {
				change(fork)
				began := time.Now()
				eventually(t, func() error {
					flow, err := s.tester.Get("http://" + webIP + "/")
					if err != nil {
						return err
					}
					request, err := s.client.Get("http://"+webIP+"/", "x-sidetrack-key: "+keyA)
					return errors.Join(err, expect("the flow's server", flow.Server, "fork-"+fork), expect("the request's server", request.Server, "fork-"+fork))
				})
				fastest = min(fastest, time.Since(began))
			}
			if fastest > inForce() {
				t.Errorf("in force after %s", fastest)
			}
		})
	}
}

// TestAFileWithAnErrorIsReportedAndTheLastGoodStateStays.
func TestAFileWithAnErrorIsReportedAndTheLastGoodStateStays(t *testing.T) {
	s := newShop(t)
	s.serveSeen()
	a := s.start()
	good := sandbox("a", keyA, redirects("web", "web-a"))
	for _, tt := range []struct {
		name, text string
		words      []string // file, document, field, remedy
	}{
		{"no YAML", "apiVersion: [\n", []string{"sandbox-a.yaml"}},
		{"cut off", good[:len(good)-30], []string{"sandbox-a.yaml"}},
		{"an unknown field", good + "  redirect: []\n", []string{"sandbox-a.yaml", "document 1", "redirect"}},
		{"a misspelt field", sandbox("a", keyA, "redirects: [{from: {servce: web}, to: {service: web-b}}]"), []string{"sandbox-a.yaml", "document 1", "servce"}},
		{"a bad key", sandbox("a", "short", redirects("web", "web-b")), []string{"sandbox-a.yaml", "document 1", "spec.routingKey", "use 8 to 64"}},
		{"two targets", sandbox("a", keyA, "redirects: [{from: {service: web}, to: {service: web-b, address: 10.0.0.1}}]"), []string{"sandbox-a.yaml", "document 1", "spec.redirects[0].to", "set exactly one"}},
		{"a bad enum", sandbox("a", keyA, "existingConnections: Sometimes", redirects("web", "web-b")), []string{"sandbox-a.yaml", "spec.existingConnections", "Idle, All or Leave"}},
		{"an error in the second document", good + "---\n" + sandbox("c", "c-key-0123456789", "redirects: [{from: {}, to: {service: web-b}}]"), []string{"sandbox-a.yaml", "document 2", "spec.redirects[0].from.service", "name the Service"}},
		{"a wrong type", sandbox("a", keyA, "redirects: web"), []string{"sandbox-a.yaml", "document 1", "redirects"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := len(a.log.String())
			put(t, s.dir, "sandbox-a.yaml", tt.text)
			line := a.wantLogAfter(before, tt.words...)
			if strings.Contains(line, `"short"`) || strings.Contains(line, keyA) {
				t.Errorf("the log shows the key: %s", line)
			}
			for range 20 {
				flow := s.tester.MustGet("http://" + webIP + "/")
				request := s.client.MustGet("http://"+webIP+"/", "x-sidetrack-key: "+keyA)
				if flow.Server != "fork-a" || request.Server != "fork-a" {
					t.Fatalf("the flow reached %s and the request %s: the last good state is gone", flow.Server, request.Server)
				}
			}
			if n := a.scrape().sum("sidetrack_problems"); n != 1 {
				t.Errorf("sidetrack_problems is %v, want 1", n)
			}
			put(t, s.dir, "sandbox-a.yaml", good)
			eventually(t, func() error {
				return expect("problems", a.scrape().sum("sidetrack_problems"), 0)
			})
		})
	}
}

// TestWhatIsSoundButCannotBeHonouredIsSaid and everything else holds.
func TestWhatIsSoundButCannotBeHonouredIsSaid(t *testing.T) {
	s := newShop(t)
	s.serveSeen()
	put(t, s.dir, "unknown.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec: {}\n", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n")
	put(t, s.dir, "forks.yaml", sandbox("with-forks", "forks-key-0123456", "forks: [{workload: {kind: Deployment, name: web}}]", redirects("web", "web-b")))
	put(t, s.dir, "astray.yaml", sandbox("astray", "astray-key-012345", redirects("no-such-service", "web-b", "nginx", "no-such-fork")))
	put(t, s.dir, "thief.yaml", sandbox("thief", keyA, redirects("web", "web-b")))
	put(t, s.dir, "orphan.yaml", s.MustPod("orphan").Object("sidetrack.dev/sandbox: nobodys"))
	put(t, s.dir, "notes.txt", "this is no manifest")
	put(t, s.dir, "many.yaml", "# a comment\n", "\n", sandbox("many1", "many1-key-0123456", redirects("web", "web-a")), "", sandbox("many2", "many2-key-0123456", redirects("web", "web-b")))
	a := s.start()
	a.wantLog("Deployment", "unknown.yaml")
	a.wantLog("ConfigMap", "unknown.yaml")
	a.wantLog("forks", "controller", "with-forks")
	a.wantLog("no-such-service", "astray")
	a.wantLog("no-such-fork", "astray")
	a.wantLog("thief", "in use already")
	a.wantLog("orphan", "nobodys")
	for key, want := range map[string]string{
		"forks-key-0123456": "fork-b", "many1-key-0123456": "fork-a", "many2-key-0123456": "fork-b", keyA: "fork-a", keyB: "fork-b",
	} {
		if got := s.client.MustGet("http://"+webIP+"/", "x-sidetrack-key: "+key); got.Server != want {
			t.Errorf("%s: %s answered, want %s", key, got.Server, want)
		}
	}
}

// TestPodsComeAndGo: a namespace that is made later, and one that is made anew.
func TestPodsComeAndGo(t *testing.T) {
	s := newShop(t)
	s.serveSeen()
	a := s.start()
	later := func() *lab.Pod { return s.MustPod("later") }
	p := later()
	object := p.Object("sidetrack.dev/sandbox: b")
	if err := p.Remove(); err != nil {
		t.Fatal(err)
	}
	put(t, s.dir, "later.yaml", object)
	if gaps := waitGaps(a, 1); gaps != 1 {
		t.Errorf("%v pods without a namespace, want 1", gaps)
	}
	for range 3 {
		p = later()
		eventually(t, func() error {
			got, err := p.Get("http://" + webIP + "/")
			return errors.Join(err, expect("server", got.Server, "fork-b"))
		})
		if err := p.Remove(); err != nil {
			t.Fatal(err)
		}
		if gaps := waitGaps(a, 1); gaps != 1 {
			t.Errorf("%v pods without a namespace, want 1", gaps)
		}
	}
	t.Run("by path, and a plain pod that is captured", func(t *testing.T) {
		q := s.MustPod("by-path")
		put(t, s.dir, "by-path.yaml", strings.Replace(q.Object(), "netns: "+q.Netns, "netns: "+q.Path, 1))
		eventually(t, func() error {
			got, err := q.Get("http://"+webIP+"/", "x-sidetrack-key: "+keyB)
			return errors.Join(err, expect("server", got.Server, "fork-b"))
		})
	})
}

func waitGaps(a *agent, want float64) float64 {
	end := time.Now().Add(patience)
	for {
		got := a.scrape().sum("sidetrack_coverage_gaps", `kind="pod_without_namespace"`)
		if got == want || time.Now().After(end) {
			return got
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestReadinessAndCheck: what an operator asks first.
func TestReadinessAndCheck(t *testing.T) {
	s := newShop(t)
	a := launch(t, s.World, s.dir)
	early := 0
	for {
		status, _, err := a.get("/readyz")
		if err == nil && status == http.StatusOK {
			break
		}
		if err == nil && status != http.StatusServiceUnavailable {
			t.Fatalf("/readyz: status %d before it is ready", status)
		}
		if early++; early > 10000 {
			t.Fatal("never ready")
		}
		time.Sleep(time.Millisecond)
	}
	// From now on the table is in force.
	s.serveSeen()
	if got := s.tester.MustGet("http://" + webIP + "/"); got.Server != "fork-a" {
		t.Errorf("ready, and a tagged flow reached %s", got.Server)
	}
	if got := s.client.MustGet("http://"+webIP+"/", "x-sidetrack-key: "+keyB); got.Server != "fork-b" {
		t.Errorf("ready, and a tagged request reached %s", got.Server)
	}
	out, err := once(t, "check", "--cgroup", s.Cgroup, "--bpffs", s.BPFFS)
	if err != nil || len(strings.Split(strings.TrimSpace(out), "\n")) < 4 || strings.Contains(out, "MISSING") {
		t.Errorf("check: %v\n%s", err, out)
	}
	out, err = once(t, "check", "--cgroup", filepath.Join(s.Dir(), "not-there"), "--bpffs", s.BPFFS)
	if err == nil || !strings.Contains(out, "not-there") {
		t.Errorf("check of a cgroup that is not there: %v\n%s", err, out)
	}
}

// TestDefaultsOfCgroupAndBPFFS: the root of cgroup2, and a folder on which
// nothing is mounted yet.
func TestDefaultsOfCgroupAndBPFFS(t *testing.T) {
	s := newShop(t)
	s.serveSeen()
	bpffs := filepath.Join(s.Dir(), "unmounted")
	if err := os.Mkdir(bpffs, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A mount that is not there is not left behind either.
		_ = unix.Unmount(bpffs, unix.MNT_DETACH)
	})
	a := runDaemon(t, s.World, "run", "--manifests", s.dir, "--bpffs", bpffs, "--metrics-address", freePort(t))
	a.metrics = a.cmd.Args[len(a.cmd.Args)-1]
	a.ready()
	if got := s.tester.MustGet("http://" + webIP + "/"); got.Server != "fork-a" {
		t.Errorf("a tagged flow reached %s", got.Server)
	}
	if got := s.client.MustGet("http://"+webIP+"/", "x-sidetrack-key: "+keyB); got.Server != "fork-b" {
		t.Errorf("a tagged request reached %s", got.Server)
	}
	a.stop()
	if out, err := once(t, "uninstall", "--bpffs", bpffs); err != nil {
		t.Errorf("uninstall: %v\n%s", err, out)
	}
	if got := s.tester.MustGet("http://" + webIP + "/"); got.Server != "baseline" {
		t.Errorf("uninstalled, and a flow reached %s", got.Server)
	}
}

// TestTablesThatDoNotFitAreRefusedByTheFlagsName and what was in force stays.
func TestTablesThatDoNotFitAreRefusedByTheFlagsName(t *testing.T) {
	s := newShop(t)
	s.serveSeen()
	drop(t, s.dir, "sandbox-b.yaml")
	// A pod with inject would want all Services.
	put(t, s.dir, "pods.yaml", s.tester.Object("sidetrack.dev/sandbox: a"))
	put(t, s.dir, "sandbox-a.yaml", sandbox("a", keyA, redirects("web", "web-a")))
	a := s.start("--max-destinations=100", "--max-flow-routes=100")
	put(t, s.dir, "sandbox-b.yaml", sandbox("b", keyB, redirects("wide", "wide-b")))
	a.wantLog("--max-")
	if got := s.client.MustGet("http://"+webIP+"/", "x-sidetrack-key: "+keyA); got.Server != "fork-a" {
		t.Errorf("a tagged request reached %s", got.Server)
	}
	if got := s.tester.MustGet("http://" + webIP + "/"); got.Server != "fork-a" {
		t.Errorf("a tagged flow reached %s", got.Server)
	}
	put(t, s.dir, "sandbox-b.yaml", sandbox("b", keyB, redirects("web", "web-b")))
	eventually(t, func() error {
		got, err := s.client.Get("http://"+webIP+"/", "x-sidetrack-key: "+keyB)
		return errors.Join(err, expect("server", got.Server, "fork-b"))
	})
	if out, err := once(t, "run", "--manifests", filepath.Join(s.dir, "nowhere"), "--bpffs", s.BPFFS, "--cgroup", s.Cgroup, "--metrics-address", freePort(t)); err == nil || !strings.Contains(out, "nowhere") {
		t.Errorf("a folder that is not there: %v: %s", err, out)
	}
	if out, err := once(t, "run"); err == nil || !strings.Contains(out, "--manifests") {
		t.Errorf("no folder: %v: %s", err, out)
	}
}
