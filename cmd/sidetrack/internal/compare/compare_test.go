// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/exchange"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// side is a server that tells the two apart by the key, and the sender to it.
func side(t *testing.T, h func(rw http.ResponseWriter, r *http.Request, tagged bool, n int64)) Sender {
	t.Helper()
	const key = "the-key-of-the-sandbox"
	var n atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		h(rw, r, strings.Contains(r.Header.Get("Baggage"), "sidetrack="+key), n.Add(1))
	}))
	t.Cleanup(s.Close)
	return Through(func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, s.Listener.Addr().String())
	}, exchange.Names{}, key)
}

func compareOnce(t *testing.T, send Sender, o Options) Result {
	t.Helper()
	r, err := Compare(t.Context(), send, exchange.Request{URL: "http://front.shop/"}, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func places(all []Difference) []string {
	var out []string
	for _, d := range all {
		out = append(out, fmt.Sprintf("%s: %s -> %s", d.Where, d.Baseline, d.Sandbox))
	}
	return out
}

func TestWhatTheUserSendsAlongDoesNotMakeOneOfBothSides(t *testing.T) {
	const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	send := side(t, func(rw http.ResponseWriter, r *http.Request, tagged bool, _ int64) {
		fmt.Fprintf(rw, `{"fork": %t, "shared": %t}`, tagged, r.Header.Get("Traceparent") == trace)
	})
	r := exchange.Request{URL: "http://front.shop/", Header: http.Header{"Traceparent": {trace}}}
	res, err := Compare(t.Context(), send, r, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"$.fork: false -> true"}, places(res.Differences)); diff != "" {
		t.Errorf("differences (-want +got):\n%s", diff)
	}
	a, err := send(t.Context(), r, true)
	if err != nil || !strings.Contains(string(a.Body), `"shared": false`) || r.Header.Get("Traceparent") != trace {
		t.Errorf("%+v, %v", a, err)
	}
	r.Header = http.Header{"Baggage": {"sidetrack=the-key-of-the-sandbox"}}
	if _, err := Compare(t.Context(), send, r, Options{}); task.KindOf(err) != task.Usage || !strings.Contains(err.Error(), "have a routing key") {
		t.Errorf("a key of the user's own: %v", err)
	}
}

func TestAPlantedDifferenceIsReportedAndNoNoise(t *testing.T) {
	send := side(t, func(rw http.ResponseWriter, r *http.Request, tagged bool, n int64) {
		price, status := 10, http.StatusOK
		if tagged {
			price, status = 12, http.StatusAccepted
			rw.Header().Set("X-Version", "2")
		}
		rw.Header().Set("Content-Type", "application/json")
		rw.Header().Set("X-Request-Id", fmt.Sprint(n))
		rw.WriteHeader(status)
		// What is random, what counts, what goes round among three, and what repeats the
		// request.
		fmt.Fprintf(rw, `{"id": "%x", "n": %d, "pod": "p%d", "echo": %q, "items": [{"name": "a", "price": %d}, {"name": "b", "price": 5}]}`,
			n*7919, n, n/2%3, r.Header.Get("Baggage")+r.Header.Get("Traceparent"), price)
	})
	r := compareOnce(t, send, Options{})
	want := []string{"status: 200 OK -> 202 Accepted", "$.items[0].price: 10 -> 12", "header X-Version: (absent) -> 2"}
	if d := cmp.Diff(want, places(r.Differences)); d != "" {
		t.Errorf("differences (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"$.echo", "$.id", "$.n", "$.pod", "header X-Request-Id"}, r.Noise); d != "" {
		t.Errorf("noise (-want +got):\n%s", d)
	}
	if r.BaselineAnswers != DefaultSamples || r.SandboxAnswers != DefaultSamples-1 || r.SandboxStatus != 202 || len(r.TraceID) != 32 {
		t.Errorf("%+v", r)
	}
}

func TestWhatIsEqualTakesThreeRequests(t *testing.T) {
	var sent atomic.Int64
	send := side(t, func(rw http.ResponseWriter, _ *http.Request, _ bool, n int64) {
		sent.Store(n)
		fmt.Fprint(rw, "the same\nfor all\n")
	})
	if r := compareOnce(t, send, Options{}); len(r.Differences)+len(r.Noise) != 0 || sent.Load() != 3 {
		t.Errorf("after %d requests: %+v", sent.Load(), r)
	}
}

func TestWhatChangesWithTimeIsNoDifference(t *testing.T) {
	// A clock that ticks with every second request: two answers that follow one
	// another may agree on it, and the sandbox's is in between.
	send := side(t, func(rw http.ResponseWriter, _ *http.Request, _ bool, n int64) {
		fmt.Fprintf(rw, `{"clock": %d}`, n/2)
	})
	if r := compareOnce(t, send, Options{}); len(r.Differences) != 0 {
		t.Errorf("%+v", r)
	}
}

func TestAValueThatOnlyTheSandboxVariesIsADifference(t *testing.T) {
	send := side(t, func(rw http.ResponseWriter, _ *http.Request, tagged bool, n int64) {
		v := int64(1)
		if tagged {
			v = 100 + n
		}
		fmt.Fprintf(rw, `{"v": %d}`, v)
	})
	r := compareOnce(t, send, Options{})
	if len(r.Differences) != 1 || r.Differences[0].Where != "$.v" || !strings.HasPrefix(r.Differences[0].Sandbox, "(varies) ") {
		t.Errorf("%+v", r)
	}
}

func TestPlacesCanBeIgnored(t *testing.T) {
	send := side(t, func(rw http.ResponseWriter, _ *http.Request, tagged bool, _ int64) {
		rw.Header().Set("X-Tagged", fmt.Sprint(tagged))
		fmt.Fprintf(rw, `{"a": [{"id": %t, "x": 1}, {"id": %t}], "deep": {"er": {"v": %t}}, "idea": %t}`, tagged, tagged, tagged, tagged)
	})
	r := compareOnce(t, send, Options{Ignore: []string{"$.a[*].id", "$.deep", "header X-Tagged"}, Samples: 2})
	if d := cmp.Diff([]string{"$.idea: false -> true"}, places(r.Differences)); d != "" {
		t.Errorf("differences (-want +got):\n%s", d)
	}
	if _, err := Compare(t.Context(), send, exchange.Request{URL: "http://a/"}, Options{Ignore: []string{""}}); task.KindOf(err) != task.Usage {
		t.Errorf("an empty place: %v", err)
	}
}

func TestOneSideWithoutAnAnswerIsADifference(t *testing.T) {
	send := side(t, func(rw http.ResponseWriter, _ *http.Request, tagged bool, _ int64) {
		if tagged {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprint(rw, "well")
	})
	r := compareOnce(t, send, Options{Samples: 2})
	if len(r.Differences) == 0 || r.Differences[0].Where != "error" || r.SandboxError == "" || r.SandboxStatus != 0 || r.BaselineStatus != 200 {
		t.Errorf("%+v", r)
	}
}

func TestBodiesAreComparedByWhatTheyAre(t *testing.T) {
	for _, c := range []struct {
		body string
		want facts
	}{
		{`{"a": {"b c": [1.50, null, {}], "d'e": []}, "1": true}`, facts{"$.a['b c'][0]": "1.50", "$.a['b c'][1]": "null", "$.a['b c'][2]": "{}", `$.a['d\'e']`: "[]", "$['1']": "true"}},
		{`12`, facts{"$": "12"}},
		{`{"a": 1} {"a": 2}`, facts{"line 1": `{"a": 1} {"a": 2}`}},
		{"one\ntwo\n", facts{"line 1": "one", "line 2": "two"}},
		{"", facts{"body": "(empty)"}},
		{"\xff\xfe", facts{"body": "2 bytes, sha256 6b4c1b5c7b8f1a3ebd8b7e1ae1b0a1a4"}},
	} {
		got := read(&exchange.Answer{Status: 200, Body: []byte(c.body)}, nil)
		delete(got, "status")
		if strings.Contains(c.want["body"], "sha256") {
			if !strings.HasPrefix(got["body"], "2 bytes, sha256 ") {
				t.Errorf("%q: %v", c.body, got)
			}
			continue
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%q (-want +got):\n%s", c.body, d)
		}
	}
	if f := read(&exchange.Answer{Status: 200, Header: http.Header{"Date": {"now"}, "Server": {"x"}}}, nil); f["header Server"] != "x" || f["header Date"] != "" {
		t.Errorf("headers %v", f)
	}
	if f := read(nil, fmt.Errorf("to 10.0.0.1:80: %w", errors.New("refused"))); f["error"] != "refused" {
		t.Errorf("an error is %v", f)
	}
}

func TestPodsCountAsTheirWorkloads(t *testing.T) {
	pod := func(name, ip, owner, hash, baseline string) corev1.Pod {
		yes := true
		p := corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"pod-template-hash": hash}, OwnerReferences: []metav1.OwnerReference{{Kind: "ReplicaSet", Name: owner, Controller: &yes}}},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}}},
			Status:     corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: ip}}},
		}
		if baseline != "" {
			p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "SIDETRACK_BASELINE", Value: baseline}}
		}
		return p
	}
	name := namesOf([]corev1.Pod{
		pod("route-7c5f-a", "10.1.0.4", "route-7c5f", "7c5f", ""),
		pod("route-7c5f-ab", "fd00::5", "route-7c5f", "7c5f", ""),
		pod("route-pr-42-x-1", "10.1.0.40", "route-pr-42-x", "", "Deployment/route"),
	})
	for in, want := range map[string]string{
		`"10.1.0.4:34014"`:                         `"<pod of Deployment/route>"`,
		`"10.1.0.40"`:                              `"<pod of Deployment/route>"`,
		`"[fd00::5]:80"`:                           `"<pod of Deployment/route>"`,
		`"10.1.0.41:80"`:                           `"10.1.0.41:80"`,
		`from route-7c5f-ab by route-7c5f-a`:       `from <pod of Deployment/route> by <pod of Deployment/route>`,
		`route-pr-42-x-1`:                          `<pod of Deployment/route>`,
		`version 1.2.3.4.5, 300.1.1.1, [12:30:00]`: `version 1.2.3.4.5, 300.1.1.1, [12:30:00]`,
	} {
		if got := name(in); got != want {
			t.Errorf("%s becomes %s, want %s", in, got, want)
		}
	}
}

func TestAFileOfRequestsIsRead(t *testing.T) {
	got, err := ParseRequests(`
- http://front.shop/
- DELETE http://cart.shop/7
- url: http://cart.shop/
  method: post
  headers: {x-one: "1"}
  body: {item: 7}
- {url: http://a/, body: text}
`)
	if err != nil {
		t.Fatal(err)
	}
	want := []exchange.Request{
		{URL: "http://front.shop/"},
		{Method: "DELETE", URL: "http://cart.shop/7"},
		{Method: "POST", URL: "http://cart.shop/", Header: http.Header{"X-One": {"1"}, "Content-Type": {"application/json"}}, Body: []byte(`{"item":7}`)},
		{URL: "http://a/", Header: http.Header{}, Body: []byte("text")},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("requests (-want +got):\n%s", d)
	}
	for text, words := range map[string]string{
		"": "there are no requests", "url: http://a/": "no list", "- {colour: red}": "request 1: ", "- {method: GET}": "url is missing", "- a b c": "neither URL nor METHOD URL",
	} {
		if _, err := ParseRequests(text); task.KindOf(err) != task.Usage || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v, want %q", text, err, words)
		}
	}
}
