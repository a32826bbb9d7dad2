// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// TestWhatIsDeletedBeforeTheFirstListIsGone: it is there when it is read, and not
// any more when it is listed, so no watch ever tells of it.
func TestWhatIsDeletedBeforeTheFirstListIsGone(t *testing.T) {
	kind := metav1.TypeMeta{APIVersion: v1alpha1.APIVersion, Kind: v1alpha1.SandboxKind}
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		e := json.NewEncoder(rw)
		switch {
		case r.URL.Query().Get("watch") != "":
			// A list by watch ends with a bookmark; nothing comes after it.
			_ = e.Encode(map[string]any{"type": "BOOKMARK", "object": v1alpha1.Sandbox{TypeMeta: kind, ObjectMeta: metav1.ObjectMeta{
				ResourceVersion: "2", Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"},
			}}})
			rw.(http.Flusher).Flush()
			<-r.Context().Done()
		case strings.HasSuffix(r.URL.Path, "/sandboxes/a"):
			_ = e.Encode(v1alpha1.Sandbox{TypeMeta: kind, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "a", ResourceVersion: "1"}})
		default:
			_ = e.Encode(v1alpha1.SandboxList{TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.APIVersion, Kind: "SandboxList"}, ListMeta: metav1.ListMeta{ResourceVersion: "2"}})
		}
	}))
	defer s.Close()
	mapper := meta.NewDefaultRESTMapper(nil)
	mapper.Add(v1alpha1.GroupVersion.WithKind(v1alpha1.SandboxKind), meta.RESTScopeNamespace)
	c, err := Connect(&rest.Config{Host: s.URL}, "shop", mapper)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var seen []bool
	err = Follow(ctx, c, &v1alpha1.Sandbox{}, &v1alpha1.SandboxList{}, client.ObjectKey{Namespace: "shop", Name: "a"}, 0, func(sb *v1alpha1.Sandbox) (bool, error) {
		seen = append(seen, sb != nil)
		return sb == nil, nil
	}, nil)
	if err != nil || len(seen) != 2 || !seen[0] {
		t.Errorf("it was there: %v (%v)", seen, err)
	}
}
