// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	_ "embed"
	"maps"
	"slices"
	"strings"
	"testing"
)

//go:embed README.md
var readme string

func TestEveryMapIsDescribed(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(load(t).Maps)) {
		if name != ".rodata" && !strings.Contains(readme, "| `"+name+"` ") {
			t.Errorf("README.md has no row about map %s", name)
		}
	}
}
