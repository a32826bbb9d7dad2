// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"testing"
)

func TestSpread(t *testing.T) {
	nan := math.NaN()
	for _, c := range []struct {
		name   string
		values []float64
		want   Spread
	}{
		{"an odd number of values", []float64{3, 1, 2, 5, 4}, Spread{Median: 3, Low: 2, High: 4, Min: 1, Max: 5, N: 5}},
		{"an even number of values", []float64{4, 1, 2, 3}, Spread{Median: 2.5, Low: 1.75, High: 3.25, Min: 1, Max: 4, N: 4}},
		{"one value", []float64{7}, Spread{Median: 7, Low: 7, High: 7, Min: 7, Max: 7, N: 1}},
		{"failed rounds", []float64{nan, 7, math.Inf(1)}, Spread{Median: 7, Low: 7, High: 7, Min: 7, Max: 7, N: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := spread(c.values); got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
	if got := spread([]float64{nan}).format("%.1f"); got != "–" {
		t.Errorf("nothing measured is shown as %q", got)
	}
}
