// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ledgerv1alpha1 "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger/wire"
)

// full has an agent answer a question with as many parts as possible, of as many
// records as there may be in one; the records of all its answers are one second apart,
// in order. It returns when the last has been taken or nobody awaits more.
func (a *agent) full(ctx context.Context, id uint64, parts int) {
	second := int64(0)
	for part := range parts {
		answer := wire.Answer{ID: id, Part: uint64(part + 1), Done: part == parts-1}
		for range wire.AnswerRecords {
			second++
			answer.Records.Items = append(answer.Records.Items, ledgerv1alpha1.Record{Time: metav1.NewMicroTime(time.Unix(second, 0))})
		}
		answer.Records.Nodes = []ledgerv1alpha1.NodeAnswer{{Answered: true}}
		if !a.h.answered(ctx, a.node, answer) {
			return
		}
	}
}

// given polls until nothing is counted any more.
func (h *hub) given(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); h.room.taken() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are counted when no reader is left", h.room.taken())
		}
	}
}

func TestOnlyTheNewestRecordsAreInMemoryWhileNodesAnswer(t *testing.T) {
	const limit, parts, nodes = wire.AnswerRecords, 6, 3
	h := newTestHub(time.Minute)
	// One user has room for four times the limit, and for less than a third of all records.
	h.room.most = 8 * limit * recordBytes
	ctx, over := context.WithCancel(t.Context())
	defer over()
	for i := range nodes {
		a := h.agent(fmt.Sprint("node-", i), "x")
		go func() { a.full(ctx, (<-a.questions).ID, parts) }()
	}
	list, err := h.as("joe").Records(ctx, pr42, ledgerv1alpha1.Options{Limit: limit})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(list.Items); n != limit {
		t.Fatalf("%d records, want %d", n, limit)
	}
	last := int64(parts * wire.AnswerRecords)
	if first := list.Items[0].Time.Unix(); first != last-(limit+nodes-1)/nodes+1 || list.Items[limit-1].Time.Unix() != last {
		t.Errorf("records from %d to %d, which are not the newest", first, list.Items[limit-1].Time.Unix())
	}
	omitted := int64(0)
	for _, n := range list.Nodes {
		if !n.Answered {
			t.Errorf("node %+v", n)
		}
		omitted += n.Omitted
	}
	if want := int64(nodes*parts*wire.AnswerRecords - limit); len(list.Nodes) != nodes || omitted != want {
		t.Errorf("%d nodes have omitted %d records, want %d", len(list.Nodes), omitted, want)
	}
	if n := h.room.taken(); n != limit*recordBytes {
		t.Errorf("%d bytes are counted while the answer is written, want %d", n, limit*recordBytes)
	}
	over()
	h.given(t)
}

func TestReadersForWhomThereIsNoRoomAreToldToAskForLess(t *testing.T) {
	h := newTestHub(time.Minute)
	h.room.most = 6 * wire.AnswerRecords * recordBytes
	a := h.agent("one", "x")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		for {
			select {
			case q := <-a.questions:
				if !q.End {
					go a.full(ctx, q.ID, 2)
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	ask := func(ctx context.Context) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		path := "/apis/" + ledgerv1alpha1.APIVersion + "/namespaces/shop/sandboxes/pr-42/records?limit=20000"
		ledger.Handler(h.as("joe"), time.Minute).ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, path, http.NoBody))
		return w
	}
	first, over := context.WithCancel(t.Context())
	defer over()
	if w := ask(first); w.Code != http.StatusOK {
		t.Fatalf("the first reader is answered %d %s", w.Code, w.Body)
	}
	// It has not taken its answer yet.
	w := ask(t.Context())
	var status metav1.Status
	if err := json.Unmarshal(w.Body.Bytes(), &status); err != nil {
		t.Fatal(err)
	}
	if w.Code != http.StatusTooManyRequests || status.Reason != metav1.StatusReasonTooManyRequests || status.Message != errTooMuch.Error() {
		t.Errorf("the second reader is answered %d %+v", w.Code, status)
	}
	over()
	h.given(t)
	last, over := context.WithCancel(t.Context())
	defer over()
	if w := ask(last); w.Code != http.StatusOK {
		t.Errorf("a reader when there is room again is answered %d %s", w.Code, w.Body)
	}
}
