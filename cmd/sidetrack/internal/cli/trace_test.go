// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/rest"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/hops"
)

// follow runs trace --follow on these parts of a stream, and ends it when all have been
// read, unless it ends by itself.
func follow(t *testing.T, parts ...ledger.RecordList) (said string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var asked atomic.Bool // the client asks again when a stream has ended, and not at once
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if asked.Swap(true) {
			cancel()
			return
		}
		rw.Header().Set("Content-Type", "application/json")
		e := json.NewEncoder(rw)
		for i := range parts {
			_ = e.Encode(&parts[i])
		}
	}))
	defer s.Close()
	c, err := cluster.Connect(&rest.Config{Host: s.URL}, "shop", nil)
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	p := newProgram("sidetrack", "v1.2.3", genericiooptions.IOStreams{In: strings.NewReader(""), Out: &bytes.Buffer{}, ErrOut: &stderr})
	err = p.followHops(ctx, c, hops.Of{Name: "pr-42"}, ledger.Options{}, &hopFlags{output: resultOutput()})
	return stderr.String(), err
}

func TestAStreamsGapsAreSaidOnce(t *testing.T) {
	part := func(nodes ...ledger.NodeAnswer) ledger.RecordList {
		return ledger.RecordList{Items: []ledger.Record{{Time: metav1.NowMicro()}}, Nodes: nodes}
	}
	answered := func(dropped, missed, omitted int64) ledger.NodeAnswer {
		return ledger.NodeAnswer{Node: "n1", Answered: true, Dropped: dropped, MissedFlows: missed, Omitted: omitted}
	}
	said, _ := follow(t,
		part(answered(10, 4, 7)), part(answered(10, 4, 7)), part(answered(11, 5, 0)), part(answered(19, 7, 0)),
		part(answered(20, 7, 0)), part(answered(39, 7, 0)),
		part(ledger.NodeAnswer{Node: "n2", Answered: true, Dropped: 1}),
		part(ledger.NodeAnswer{Node: "n2", Message: "lost"}), part(ledger.NodeAnswer{Node: "n2", Message: "lost"}),
		part(ledger.NodeAnswer{Node: "n2", Message: "not connected"}),
		part(ledger.NodeAnswer{Node: "n2", Answered: true, Dropped: 1}),
		part(ledger.NodeAnswer{Node: "n2", Message: "not connected"}),
	)
	want := `sidetrack: node n1 has dropped its 10 oldest records
sidetrack: node n1 has no records of 4 flows, too many at once
sidetrack: node n1 has 7 more: see them with --limit or --since
sidetrack: node n1 has dropped its 20 oldest records
sidetrack: node n2 has dropped its 1 oldest records
sidetrack: node n2 has not answered, and its hops are missing: lost
sidetrack: node n2 has not answered, and its hops are missing: not connected
sidetrack: node n2 has not answered, and its hops are missing: not connected
`
	if d := cmp.Diff(want, said); d != "" {
		t.Errorf("it says (-want +got):\n%s", d)
	}
}

func TestAStreamThatTheLedgerHasEndedSaysWhy(t *testing.T) {
	ended := func(code int32, reason metav1.StatusReason) ledger.RecordList {
		return ledger.RecordList{Ended: &metav1.Status{Status: metav1.StatusFailure, Code: code, Reason: reason, Message: "it is so"}}
	}
	for _, x := range []struct {
		end  ledger.RecordList
		want string
	}{
		{ended(403, metav1.StatusReasonForbidden), "you may not read the ledger of pr-42: it is so"},
		{ended(429, metav1.StatusReasonTooManyRequests), "the ledger has ended the stream of pr-42: it is so"},
	} {
		if _, err := follow(t, ledger.RecordList{}, x.end); err == nil || !strings.HasPrefix(err.Error(), x.want) {
			t.Errorf("%s: %v, want %q", x.end.Ended.Reason, err, x.want)
		}
	}
	// It goes on, until the test cancels it.
	if _, err := follow(t, ledger.RecordList{}, ended(503, metav1.StatusReasonServiceUnavailable)); !errors.Is(err, context.Canceled) {
		t.Errorf("of one that may go on: %v", err)
	}
}
