// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	k8stesting "k8s.io/client-go/testing"

	ledgerv1alpha1 "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger/wire"
)

// serve has a collector served on a port, to whomever the header User names, by HTTP/1
// or HTTP/2. They may read all.
func serve(t *testing.T, h *hub, patience time.Duration, http2 bool) *httptest.Server {
	t.Helper()
	may := fake.NewClientset()
	may.PrependReactor("create", "subjectaccessreviews", func(action k8stesting.Action) (bool, runtime.Object, error) {
		r := action.(k8stesting.CreateAction).GetObject().(*authorizationv1.SubjectAccessReview)
		r.Status.Allowed = true
		return true, r, nil
	})
	s := httptest.NewUnstartedServer(&service{
		hub: h, access: access{may.AuthorizationV1().SubjectAccessReviews()}, patience: patience,
		who: authenticator.RequestFunc(func(r *http.Request) (*authenticator.Response, bool, error) {
			return &authenticator.Response{User: &user.DefaultInfo{Name: r.Header.Get("User")}}, true, nil
		}),
	})
	// What is not read has to wait in the server, not in the kernel.
	s.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if tls, ok := c.(interface{ NetConn() net.Conn }); ok {
			c = tls.NetConn()
		}
		if err := c.(*net.TCPConn).SetWriteBuffer(64 << 10); err != nil {
			t.Error(err)
		}
		return ctx
	}
	s.EnableHTTP2 = http2
	if http2 {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s
}

// open asks as a user, by a connection of its own, and returns when the answer begins.
func open(t *testing.T, s *httptest.Server, user, path string) *http.Response {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("User", user)
	transport := s.Client().Transport.(*http.Transport).Clone()
	t.Cleanup(transport.CloseIdleConnections)
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// answering has an agent answer all questions with as many records.
func (h *hub) answering(t *testing.T, parts int) {
	a := h.agent("one", "x")
	go func() {
		for {
			select {
			case q := <-a.questions:
				if !q.End {
					go a.full(t.Context(), q.ID, parts)
				}
			case <-t.Context().Done():
				return
			}
		}
	}()
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it is never so that %s", what)
		}
	}
}

func TestOneUsersStreamsDoNotKeepOthersFromReading(t *testing.T) {
	h := newTestHub(time.Minute, "one")
	h.streams.most, h.streams.each = 4, 4
	h.answering(t, 1)
	s := serve(t, h, time.Minute, false)
	follow := (&ledgerv1alpha1.Options{Follow: true}).Path("sandboxes", "shop", "pr-42")
	streams := make([]*http.Response, 4)
	for i := range streams {
		if streams[i] = open(t, s, "joe", follow); streams[i].StatusCode != http.StatusOK {
			t.Fatalf("stream %d of the first user: %s", i, streams[i].Status)
		}
	}
	more := open(t, s, "joe", follow)
	body, err := io.ReadAll(more.Body)
	if err != nil || more.StatusCode != http.StatusTooManyRequests || more.Header.Get("Retry-After") != "2" || !strings.Contains(string(body), "you have 4 streams of the ledger open already") {
		t.Errorf("a stream more: %s, again after %q: %s, %v", more.Status, more.Header.Get("Retry-After"), body, err)
	}
	// Others get theirs, until all have as many.
	for i, want := range []int{http.StatusOK, http.StatusOK, http.StatusTooManyRequests} {
		if resp := open(t, s, "ann", follow); resp.StatusCode != want {
			t.Errorf("stream %d of the second user: %s", i, resp.Status)
		}
	}
	// The newest of the first user's have ended, and no other.
	for i, resp := range streams {
		lines := bufio.NewReader(resp.Body)
		// Of one that ends, this may be the end already.
		last, err := lines.ReadBytes('\n')
		if err != nil {
			t.Errorf("stream %d says nothing: %v", i, err)
		}
		if i >= 2 {
			eventually(t, fmt.Sprintf("stream %d ends", i), func() bool {
				line, err := lines.ReadBytes('\n')
				if err == nil {
					last = line
				}
				return err != nil
			})
			var list ledgerv1alpha1.RecordList
			if err := json.Unmarshal(last, &list); err != nil || list.Ended == nil || !apierrors.IsTooManyRequests(&apierrors.StatusError{ErrStatus: *list.Ended}) {
				t.Errorf("stream %d ends with %q (%v)", i, last, err)
			}
		}
	}
	if resp := open(t, s, "ben", follow); resp.StatusCode != http.StatusOK {
		t.Errorf("a third user: %s", resp.Status)
	}
}

// A reader that stops reading keeps neither others from reading, nor what it has for
// ever.
func TestAReaderThatTakesNothingIsGivenUp(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		for _, follow := range []bool{false, true} {
			t.Run(fmt.Sprintf("HTTP/2 %t, stream %t", http2, follow), func(t *testing.T) {
				h := newTestHub(time.Minute, "one")
				h.room.most = 128 * wire.AnswerRecords * recordBytes
				h.answering(t, 40)
				s := serve(t, h, 2*time.Second, http2)
				o := ledgerv1alpha1.Options{Limit: ledgerv1alpha1.MaxLimit, Follow: follow}
				path := o.Path("sandboxes", "shop", "pr-42")
				stalled := open(t, s, "joe", path)
				if stalled.StatusCode != http.StatusOK {
					t.Fatal(stalled.Status)
				}
				eventually(t, "it has some of the room", func() bool { return h.room.taken() > 0 })
				short := (&ledgerv1alpha1.Options{Limit: 10}).Path("sandboxes", "shop", "pr-42")
				if other := open(t, s, "ann", short); other.StatusCode != http.StatusOK {
					t.Errorf("another reader meanwhile: %s", other.Status)
				} else if _, err := io.Copy(io.Discard, other.Body); err != nil {
					t.Errorf("another reader meanwhile: %v", err)
				}
				eventually(t, "it is given up", func() bool { return h.room.taken() == 0 })
			})
		}
	}
}

func TestAReaderThatIsSlowGetsAll(t *testing.T) {
	h := newTestHub(time.Minute, "one")
	h.answering(t, 20)
	s := serve(t, h, 20*time.Second, false)
	resp := open(t, s, "joe", (&ledgerv1alpha1.Options{Limit: ledgerv1alpha1.MaxLimit}).Path("sandboxes", "shop", "pr-42"))
	n := 0
	for buffer := make([]byte, 64<<10); ; time.Sleep(time.Millisecond) {
		m, err := resp.Body.Read(buffer)
		n += m
		if err != nil {
			if err != io.EOF {
				t.Error(err)
			}
			break
		}
	}
	if n < 20*wire.AnswerRecords*20 {
		t.Errorf("%d bytes", n)
	}
}

// Whoever administers a namespace makes as many ServiceAccounts in it as he likes.
func TestServiceAccountsOfANamespaceAreOneUser(t *testing.T) {
	h := newTestHub(time.Minute, "one")
	h.streams.each = 2
	h.answering(t, 1)
	s := serve(t, h, time.Minute, false)
	follow := (&ledgerv1alpha1.Options{Follow: true}).Path("sandboxes", "shop", "pr-42")
	for _, x := range []struct {
		user string
		want int
	}{
		{"system:serviceaccount:shop:one", http.StatusOK}, {"system:serviceaccount:shop:two", http.StatusOK},
		{"system:serviceaccount:shop:three", http.StatusTooManyRequests},
		{"system:serviceaccount:pay:three", http.StatusOK}, {"system:node:one", http.StatusOK}, {"joe", http.StatusOK},
	} {
		resp := open(t, s, x.user, follow)
		if resp.StatusCode != x.want {
			t.Errorf("%s: %s, want %d", x.user, resp.Status, x.want)
		}
		if x.want != http.StatusOK {
			if body, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(body), "the ServiceAccounts of your namespace together have 2 streams") {
				t.Errorf("%s is told %s, %v", x.user, body, err)
			}
		}
	}
}

func TestARefusalKeepsNoRoom(t *testing.T) {
	h := newTestHub(time.Minute, "one")
	one := h.agent("one", "x")
	said := make(chan string, 8)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = h.as("joe").Follow(ctx, pr42, ledgerv1alpha1.Options{}, begun, func(l *ledgerv1alpha1.RecordList) error {
			for _, n := range l.Nodes {
				said <- n.Message
			}
			return nil
		})
	}()
	answer := wire.Answer{ID: one.next(t).ID, Refused: "no"}
	answer.Records.Items = make([]ledgerv1alpha1.Record, 3) // which a refusal has not, by right
	if !h.answered(t.Context(), "one", answer) {
		t.Error("nobody awaits the refusal")
	}
	if why := <-said; why != "no" {
		t.Errorf("it says %q", why)
	}
	cancel()
	<-ended
	if n := h.room.taken(); n != 0 {
		t.Errorf("%d bytes are kept", n)
	}
}

func TestRoomIsLeftForWhoeverComes(t *testing.T) {
	r := room{most: 1200}
	fill := func(user string) (n int64) {
		for r.take(user, 1) {
			n++
		}
		return n
	}
	if n := fill("joe"); n != 600 {
		t.Errorf("one user gets %d of 1200", n)
	}
	if n := fill("ann"); n != 300 {
		t.Errorf("the next gets %d", n)
	}
	for _, user := range []string{"joe", "ann", "ben"} {
		if !r.take(user, 0) {
			t.Errorf("there is no room for nothing of %s", user)
		}
	}
	r.give("joe", 600)
	if n := fill("ann"); n != 300 {
		t.Errorf("when the first has left, the other gets %d more", n)
	}
	r.give("ann", 600)
	if r.taken() != 0 || len(r.held) != 0 {
		t.Errorf("%d are taken, by %v", r.taken(), r.held)
	}
}

// The program's client obeys what the collector says about when to ask again.
func TestAClientAsksAgainWhenThereIsRoom(t *testing.T) {
	h := newTestHub(time.Minute, "one")
	h.lists.each = 1
	h.answering(t, 1)
	s := serve(t, h, time.Minute, false)
	leave, err := h.lists.take("", nil)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(1500*time.Millisecond, leave)
	client, err := kubernetes.NewForConfig(&rest.Config{Host: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	path := (&ledgerv1alpha1.Options{}).Path("sandboxes", "shop", "pr-42")
	if err := client.CoreV1().RESTClient().Get().RequestURI(path).Do(t.Context()).Error(); err != nil {
		t.Errorf("it fails: %v", err)
	}
}
