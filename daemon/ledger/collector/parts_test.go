// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	ledgerv1alpha1 "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger/wire"
	"github.com/sidetrack-dev/sidetrack/routing"
)

var pr43 = ledger.Owner{Name: routing.Name{Namespace: "shop", Name: "pr-43"}}

func everybodyIsThere(context.Context) (map[string]string, error) { return nil, nil }

// asks returns the next question that a session is asked.
func asks(t *testing.T, s *session) wire.Question {
	t.Helper()
	for {
		select {
		case q := <-s.questions:
			if !q.End {
				return q.Question
			}
		case <-time.After(time.Minute):
			t.Fatalf("nobody asks %s", s.node)
		}
	}
}

func paths(list *ledgerv1alpha1.RecordList) (out []string) {
	for i := range list.Items {
		out = append(out, list.Items[i].Request.Path)
	}
	return out
}

func answerOf(q wire.Question, part uint64, done bool, path string) wire.Answer {
	a := wire.Answer{ID: q.ID, Part: part, Done: done}
	a.Records.Items = []ledgerv1alpha1.Record{{Request: &ledgerv1alpha1.Request{Path: path}}}
	return a
}

func TestAnAnswerThatIsSentAgainIsReadOnce(t *testing.T) {
	h := newHub(time.Minute, everybodyIsThere)
	s, leave := h.connect(sessionKey{"one", "x"})
	defer leave()
	got := make(chan []string, 1)
	go func() {
		list, err := h.as("joe").Records(t.Context(), pr43, ledgerv1alpha1.Options{})
		if err != nil {
			t.Error(err)
			list = newList()
		}
		got <- paths(list)
	}()
	q := asks(t, s)
	for _, a := range []wire.Answer{answerOf(q, 1, false, "/one"), answerOf(q, 1, false, "/one"), answerOf(q, 2, true, "/two")} {
		if !h.answered(t.Context(), "one", a) {
			t.Errorf("answer %d is not taken", a.Part)
		}
	}
	if all := <-got; len(all) != 2 || all[0] != "/one" || all[1] != "/two" {
		t.Errorf("read: %q", all)
	}
}

func TestAnAnswerToTheCollectorBeforeIsNobodys(t *testing.T) {
	ids := map[uint64]bool{}
	for range 2 {
		h := newHub(time.Minute, everybodyIsThere)
		s, leave := h.connect(sessionKey{"one", "x"})
		defer leave()
		for range 3 {
			_, end, _ := h.ask(s, wire.Question{}, "joe")
			defer end()
			q := asks(t, s)
			if ids[q.ID] {
				t.Errorf("question %d is asked by two collectors: what one reader may see would answer another", q.ID)
			}
			ids[q.ID] = true
		}
	}
}

func TestAStreamThatIsRefusedSaysSoAndIsAskedAgain(t *testing.T) {
	h := newHub(time.Minute, everybodyIsThere)
	s, leave := h.connect(sessionKey{"one", "x"})
	defer leave()
	ctx, cancel := context.WithCancel(t.Context())
	lists, ended := make(chan *ledgerv1alpha1.RecordList, 10), make(chan struct{})
	go func() {
		defer close(ended)
		_ = h.as("joe").Follow(ctx, pr43, ledgerv1alpha1.Options{}, begun, func(l *ledgerv1alpha1.RecordList) error {
			lists <- l
			return nil
		})
	}()
	h.answered(t.Context(), "one", wire.Answer{ID: asks(t, s).ID, Part: 1, Refused: "too many"})
	if l := <-lists; len(l.Nodes) != 1 || l.Nodes[0].Answered || l.Nodes[0].Message != "too many" {
		t.Errorf("the stream says %+v", l.Nodes)
	}
	h.answered(t.Context(), "one", answerOf(asks(t, s), 1, false, "/one"))
	if l := <-lists; len(l.Items) != 1 {
		t.Errorf("then the stream says %+v", l)
	}
	cancel()
	<-ended
	list := make(chan *ledgerv1alpha1.RecordList, 1)
	go func() {
		l, err := h.as("joe").Records(t.Context(), pr43, ledgerv1alpha1.Options{})
		if err != nil {
			t.Error(err)
			l = newList()
		}
		list <- l
	}()
	h.answered(t.Context(), "one", wire.Answer{ID: asks(t, s).ID, Part: 1, Refused: "too many"})
	if l := <-list; len(l.Nodes) != 1 || l.Nodes[0].Answered || l.Nodes[0].Message != "too many" {
		t.Errorf("a list says %+v", l.Nodes)
	}
}

func TestAnAnswerWaitsForItsReaderButNotForLongAndIsTheNodesOwn(t *testing.T) {
	may := fake.NewClientset()
	may.PrependReactor("create", "subjectaccessreviews", func(action k8stesting.Action) (bool, runtime.Object, error) {
		r := action.(k8stesting.CreateAction).GetObject().(*authorizationv1.SubjectAccessReview)
		a := r.Spec.ResourceAttributes
		r.Status.Allowed = a.Resource == "nodes" && a.Subresource == wire.Answers && a.Verb == "create"
		return true, r, nil
	})
	h := newHub(time.Minute, everybodyIsThere)
	s := &service{hub: h, access: access{may.AuthorizationV1().SubjectAccessReviews()}, who: authenticator.RequestFunc(func(r *http.Request) (*authenticator.Response, bool, error) {
		return &authenticator.Response{User: &user.DefaultInfo{Name: "agent", Extra: map[string][]string{nodeNameExtra: {"one"}}}}, true, nil
	})}
	session, leave := h.connect(sessionKey{"one", "x"})
	defer leave()
	question, end, _ := h.ask(session, wire.Question{}, "joe")
	defer end()
	q := asks(t, session)
	post := func(node string, a wire.Answer) int {
		body, err := json.Marshal(&a)
		if err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(http.MethodPost, wire.AnswersPath(node), bytes.NewReader(body)))
		return w.Code
	}
	if code := post("two", answerOf(q, 1, false, "/two")); code != http.StatusForbidden {
		t.Errorf("for another node: %d", code)
	}
	part := uint64(1)
	for ; int(part) <= cap(question.answers); part++ {
		if code := post("one", answerOf(q, part, false, "/")); code != http.StatusOK {
			t.Errorf("answer %d: %d", part, code)
		}
	}
	if code := post("one", answerOf(q, part, false, "/")); code != http.StatusServiceUnavailable {
		t.Errorf("while nobody reads: %d", code)
	}
	<-question.answers
	if code := post("one", answerOf(q, part, false, "/")); code != http.StatusOK {
		t.Errorf("when somebody reads again: %d", code)
	}
	end()
	if code := post("one", answerOf(q, part+1, false, "/")); code != http.StatusGone {
		t.Errorf("when nobody asks any more: %d", code)
	}
}
