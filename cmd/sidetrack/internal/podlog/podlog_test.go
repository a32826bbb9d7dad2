// SPDX-License-Identifier: Apache-2.0

package podlog

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
)

// server answers with a part of a log at each request, and says that the container
// has ended when there are no more.
func server(t *testing.T, parts ...string) *cluster.Cluster {
	t.Helper()
	var n atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/log") {
			if i := int(n.Add(1)) - 1; i < len(parts) {
				_, _ = io.WriteString(rw, parts[i])
			}
			return
		}
		p := corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"}}
		state := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
		if int(n.Load()) >= len(parts) {
			state = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}
		}
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "app", State: state}}
		rw.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(rw).Encode(p)
	}))
	t.Cleanup(s.Close)
	c, err := cluster.Connect(&rest.Config{Host: s.URL}, "shop", nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestALogGoesOnWhereItWasWhenTheConnectionIsLost(t *testing.T) {
	// The server begins again with the second in which the last line was written.
	c := server(t,
		"2030-01-02T12:00:00.1Z one\n2030-01-02T12:00:00.2Z two\n2030-01-02T12:00:00.2Z two again\n",
		"2030-01-02T12:00:00.1Z one\n2030-01-02T12:00:00.2Z two\n2030-01-02T12:00:00.2Z two again\n2030-01-02T12:00:00.2Z two, a third time\n2030-01-02T12:00:01Z \n",
		"2030-01-02T12:00:01Z \n2030-01-02T12:00:02Z the end without an end of line",
	)
	var b strings.Builder
	err := Copy(t.Context(), c, Container{"shop", "p", "app"}, Options{Follow: true, Tail: -1}, func(line string) error {
		b.WriteString(line)
		return nil
	})
	if want := "one\ntwo\ntwo again\ntwo, a third time\n\nthe end without an end of line"; err != nil || b.String() != want {
		t.Errorf("%q, %v, want %q", b.String(), err, want)
	}
}

func TestWhoIsGivenTheLinesMayEndIt(t *testing.T) {
	c := server(t, "2030-01-02T12:00:00.1Z one\n2030-01-02T12:00:00.2Z two\n", "2030-01-02T12:00:00.3Z three\n")
	enough := errors.New("enough")
	lines := 0
	err := Copy(t.Context(), c, Container{"shop", "p", "app"}, Options{Follow: true}, func(string) error {
		lines++
		return enough
	})
	if !errors.Is(err, enough) || lines != 1 {
		t.Errorf("after %d lines: %v", lines, err)
	}
}

func TestALongLineStaysOne(t *testing.T) {
	long := strings.Repeat("x", 300_000)
	c := server(t, "2030-01-02T12:00:00.1Z "+long+"\n")
	var got []string
	if err := Copy(t.Context(), c, Container{"shop", "p", "app"}, Options{}, func(line string) error {
		got = append(got, line)
		return nil
	}); err != nil || len(got) != 1 || got[0] != long+"\n" {
		t.Errorf("%d lines, %v", len(got), err)
	}
}
