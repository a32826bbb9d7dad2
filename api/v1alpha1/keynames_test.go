// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNamesThatAllNodesKnow(t *testing.T) {
	names := func(header string, members ...string) KeyNames { return KeyNames{Members: members, Header: header} }
	const remedy = ": give all agents the same, by routing.baggageMembers and routing.keyHeader of the chart, or wait until they have been replaced"
	for _, tt := range []struct {
		name  string
		nodes map[string]KeyNames
		want  *CommonKeyNames
	}{
		{"nobody says", nil, nil},
		{"one node", map[string]KeyNames{"a": names("x", "m", "n")}, &CommonKeyNames{Members: []string{"m", "n"}, Header: "x"}},
		{"the same", map[string]KeyNames{"b": names("x", "m", "n"), "a": names("X", "m", "n")}, &CommonKeyNames{Members: []string{"m", "n"}, Header: "X"}},
		{"in another order", map[string]KeyNames{"b": names("x", "n", "m"), "a": names("x", "m", "n")}, &CommonKeyNames{Members: []string{"m", "n"}, Header: "x"}},
		{"one more that is not added to requests", map[string]KeyNames{"b": names("x", "n"), "a": names("x", "n", "m")}, &CommonKeyNames{Members: []string{"n"}, Header: "x"}},
		{"one more that is", map[string]KeyNames{"b": names("x", "n"), "a": names("x", "m", "n")}, &CommonKeyNames{Members: []string{"n"}, Header: "x", Split: true,
			Message: "--baggage-member is m,n on node a, which adds the first of them to requests, and n on node b, which does not look for that one" + remedy}},
		{"nothing in common", map[string]KeyNames{"b": names("x", "n"), "a": names("x", "m"), "c": names("x", "m")}, &CommonKeyNames{Members: []string{}, Header: "x", Split: true,
			Message: "--baggage-member is m on node a, which adds the first of them to requests, and n on node b, which does not look for that one" + remedy}},
		{"headers that differ", map[string]KeyNames{"b": names("y", "m"), "a": names("x", "m"), "c": names("z", "m")}, &CommonKeyNames{Members: []string{"m"},
			Message: "--key-header is x on node a and y on node b" + remedy}},
	} {
		if diff := cmp.Diff(tt.want, FindCommonKeyNames(tt.nodes)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
	long := map[string]KeyNames{}
	for i := range 2 {
		var members []string
		for j := range 16 {
			members = append(members, fmt.Sprintf("m%d-%d-%s", i, j, strings.Repeat("x", 240)))
		}
		long[fmt.Sprint(i)] = KeyNames{Members: members, Header: "x"}
	}
	if got := FindCommonKeyNames(long); len(got.Message) > 1024 || !got.Split {
		t.Errorf("%d bytes of message: %+v", len(got.Message), got)
	}
}
