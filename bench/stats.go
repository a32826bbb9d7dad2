// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"slices"
)

// Spread is what several rounds have given.
type Spread struct {
	Median, Low, High float64 // Low and High are the first and third quartile
	Min, Max          float64
	N                 int
}

// spread sums up; what is not a number is left out.
func spread(values []float64) Spread {
	values = slices.DeleteFunc(slices.Clone(values), func(v float64) bool { return math.IsNaN(v) || math.IsInf(v, 0) })
	if len(values) == 0 {
		nan := math.NaN()
		return Spread{Median: nan, Low: nan, High: nan, Min: nan, Max: nan}
	}
	slices.Sort(values)
	return Spread{
		Median: quantile(values, 0.5), Low: quantile(values, 0.25), High: quantile(values, 0.75),
		Min: values[0], Max: values[len(values)-1], N: len(values),
	}
}

// quantile interpolates between the neighbours; values are sorted.
func quantile(values []float64, q float64) float64 {
	at := q * float64(len(values)-1)
	i := int(at)
	if i+1 >= len(values) {
		return values[len(values)-1]
	}
	return values[i] + (at-float64(i))*(values[i+1]-values[i])
}
