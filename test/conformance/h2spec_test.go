// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/sidetrack-dev/sidetrack/test/lab"
	"github.com/sidetrack-dev/sidetrack/test/programs"
)

// TestH2specIsTheSameThroughTheRouter: what h2spec finds of three servers. Most
// of its cases break the protocol on purpose.
func TestH2specIsTheSameThroughTheRouter(t *testing.T) {
	heavy(t)
	programs.Need(t, "nginx")
	h2spec, interop := program(t, "h2spec", "h2spec"), program(t, "grpc", "interop-server")
	w := newWorld(t)
	var wg sync.WaitGroup
	for _, server := range []struct {
		name  string
		start func(t *testing.T, p *lab.Pod, port int)
	}{
		{"nginx", w.startNginx},
		{"net-http", startH2},
		{"grpc-go", func(t *testing.T, p *lab.Pod, port int) { w.serve(t, p, port, interop, "-port", strconv.Itoa(port)) }},
	} {
		ports := map[way]int{direct: w.port(), untagged: w.port(), injected: w.port()}
		for v, port := range ports {
			server.start(t, w.to(v), port)
		}
		w.decoy(t, ports[injected])
		w.relay(t, ports[direct])
		ports[relayed] = ports[direct]
		// Nearly all of the time is waiting for what does not come.
		wg.Go(func() {
			t.Run(server.name, func(t *testing.T) {
				comparison{cases: 140, plain: []way{relayed}, run: func(t *testing.T, v way, only []string) results {
					return w.h2spec(t, v, h2spec, ports[v], "", only)
				}}.over(t, untagged, injected)
			})
		})
	}
	wg.Wait()
}

// TestABrokenProxyIsFound: the comparison can fail.
func TestABrokenProxyIsFound(t *testing.T) {
	h2spec := program(t, "h2spec", "h2spec")
	w := newWorld(t)
	port := w.port()
	startH2(t, w.base, port)
	w.relay(t, port)
	w.relayBy(t, broken, port, spoil)
	const pings = "http2/6.7"
	got := comparison{cases: 4, rounds: againLeast, run: func(t *testing.T, v way, only []string) results {
		return w.h2spec(t, v, h2spec, port, pings, only)
	}}.differences(t, broken, relayed)
	if len(got) != 2 || len(got[0]) == 0 || len(got[1]) > 0 {
		t.Errorf("differences %v, want some of a proxy that loses pings and none of one that passes bytes on", got)
	}
}

var reports atomic.Int32

// quiet is where a server says what its clients do wrong.
var quiet = log.New(io.Discard, "", 0)

// h2spec runs it over a way: all cases, or those of a section, or only some. They
// are named as its arguments are, like http2/6.5.2/1.
func (w *world) h2spec(t *testing.T, v way, program string, port int, section string, only []string) results {
	report := filepath.Join(w.Dir(), fmt.Sprintf("h2spec-%d.xml", reports.Add(1)))
	// The longest wait for what does not come is a second.
	args := append([]string{"-h", w.host(v), "-p", strconv.Itoa(port), "-o", "1", "-j", report}, only...)
	if section != "" && len(only) == 0 {
		args = append(args, section)
	}
	out, err := output(t, w.from(v).Command(program, args...), 5*time.Minute)
	text, readErr := os.ReadFile(report)
	if readErr != nil {
		t.Errorf("h2spec: %v\n%s", err, lastLines(out, 20))
		return nil
	}
	got, err := readJUnit(text, only)
	if err != nil {
		t.Error(err)
	}
	return got
}

// junit is the report of h2spec that machines read.
type junit struct {
	Suites []struct {
		Package string `xml:"package,attr"`
		Cases   []struct {
			Package string    `xml:"package,attr"`
			Class   string    `xml:"classname,attr"`
			Failure *string   `xml:"failure"`
			Skipped *struct{} `xml:"skipped"`
			Error   *string   `xml:"error"`
		} `xml:"testcase"`
	} `xml:"testsuite"`
}

// Frames' lengths differ by what a table of header fields holds already, and the
// text of an error has addresses.
var (
	frameLength = regexp.MustCompile(`length:\d+`)
	fourTuple   = regexp.MustCompile(`\d+(\.\d+){3}:\d+->\d+(\.\d+){3}:\d+`)
)

// asReset is the report of a connection that was to be closed and was reset.
// h2spec means that to be the same, but knows the error only as Go did not wrap it
// yet. Which of both it is depends on what the server had read when it closed.
var asReset = regexp.MustCompile(`(?s)Connection closed\s.*read: connection reset by peer\s*$`)

// readJUnit reads a report of all cases, or of those given. The report has the
// cases of a section in order and without their numbers.
func readJUnit(text []byte, only []string) (results, error) {
	// What a server sent is shown as it came, which XML may not contain.
	text = bytes.Map(func(r rune) rune {
		if r < ' ' && !strings.ContainsRune("\t\n\r", r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, text)
	var r junit
	if err := xml.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("read h2spec's report: %w", err)
	}
	numbers := map[string][]int{}
	for _, name := range only {
		section, last := path.Split(name)
		n, err := strconv.Atoi(last)
		if err != nil {
			return nil, fmt.Errorf("case %q: %w", name, err)
		}
		section = strings.TrimSuffix(section, "/")
		numbers[section] = append(numbers[section], n)
		slices.Sort(numbers[section])
	}
	got := results{}
	for _, s := range r.Suites {
		for i, c := range s.Cases {
			n := i + 1
			if len(only) > 0 {
				if i >= len(numbers[s.Package]) {
					return nil, fmt.Errorf("h2spec's report has more cases of %s than %v", s.Package, numbers[s.Package])
				}
				n = numbers[s.Package][i]
			}
			name := fmt.Sprintf("%s/%d", s.Package, n)
			switch {
			case c.Failure != nil || c.Error != nil:
				what := ""
				for _, s := range []*string{c.Failure, c.Error} {
					if s != nil {
						what += *s
					}
				}
				what = fourTuple.ReplaceAllString(frameLength.ReplaceAllString(what, "length:…"), "…")
				got[name] = "failed: " + strings.TrimSpace(what)
				if asReset.MatchString(what) {
					got[name] = passed
				}
			case c.Skipped != nil:
				got[name] = "skipped"
			default:
				got[name] = passed
			}
		}
	}
	return got, nil
}

func (w *world) startNginx(t *testing.T, p *lab.Pod, port int) {
	t.Helper()
	dir := filepath.Join(w.Dir(), fmt.Sprintf("nginx-%d", port))
	if err := os.MkdirAll(filepath.Join(dir, "files"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "files", "index.html"), []byte(strings.Repeat("hello, ", 100)), 0o644); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("testdata/nginx.conf")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(strings.NewReplacer("DIR", dir, "PORT", strconv.Itoa(port)).Replace(string(text))), 0o644); err != nil {
		t.Fatal(err)
	}
	w.serve(t, p, port, "nginx", "-p", dir, "-e", "stderr", "-c", file)
}

// startH2 serves HTTP/2 without TLS by net/http, whose server is x/net/http2's, in
// this process.
func startH2(t *testing.T, p *lab.Pod, port int) {
	t.Helper()
	l, err := p.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Protocols: new(http.Protocols), ErrorLog: quiet}
	s.Protocols.SetUnencryptedHTTP2(true)
	s.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		fmt.Fprint(rw, strings.Repeat("hello, ", 100))
	})
	t.Cleanup(func() { s.Close() })
	go func() {
		// Serve always ends in an error: Close's.
		_ = s.Serve(l)
	}()
}
