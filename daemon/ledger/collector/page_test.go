// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/sidetrack-dev/sidetrack/daemon/ledger/page"
)

func TestThePageIsServedToWhomTheAPIServerSpeaksFor(t *testing.T) {
	s := &service{page: page.Handler(), who: authenticator.RequestFunc(func(r *http.Request) (*authenticator.Response, bool, error) {
		name := r.Header.Get("X-Remote-User")
		return &authenticator.Response{User: &user.DefaultInfo{Name: name}}, name != "", nil
	})}
	for _, ask := range []struct {
		path, user string
		code       int
		has        string
	}{
		{"/apis/ledger.sidetrack.dev/v1alpha1/ui/index.html", "joe", http.StatusOK, "<script type=\"module\" src=\"app.js\">"},
		{"/apis/ledger.sidetrack.dev/v1alpha1/ui/app.js", "joe", http.StatusOK, "import"},
		{"/apis/ledger.sidetrack.dev/v1alpha1/ui/page.go", "joe", http.StatusNotFound, "the page has no file"},
		{"/apis/ledger.sidetrack.dev/v1alpha1/ui/index.html", "", http.StatusUnauthorized, "ask the Kubernetes API server"},
	} {
		r := httptest.NewRequest(http.MethodGet, ask.path, nil)
		r.Header.Set("X-Remote-User", ask.user)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != ask.code || !strings.Contains(w.Body.String(), ask.has) {
			t.Errorf("%s for %q: %d, want %d with %q:\n%s", ask.path, ask.user, w.Code, ask.code, ask.has, w.Body)
		}
	}
}
