// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkChangeOneOf100000Sandboxes writes one of many files again and waits for
// the snapshot that has it. It takes as long as the source waits for more changes
// and no longer, where nothing else is in its way: cpu-ms/op is what it works.
func BenchmarkChangeOneOf100000Sandboxes(b *testing.B) {
	const all = 100_000
	for _, each := range []int{1, 100, all} {
		b.Run(fmt.Sprintf("%d a file", each), func(b *testing.B) {
			dir := b.TempDir()
			write := func(file int, to string) { // where the first of the file's leads
				var text strings.Builder
				for i := file * each; i < (file+1)*each; i++ {
					if i > file*each {
						to = "10.0.0.1"
					}
					fmt.Fprintf(&text, "---\napiVersion: sidetrack.dev/v1alpha1\nkind: Sandbox\nmetadata: {name: many-%d, namespace: bench}\n", i)
					fmt.Fprintf(&text, "spec: {routingKey: key-of-sandbox-%08d, redirects: [{from: {service: web}, to: {address: %s, port: 80}}]}\n", i, to)
				}
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%06d.yaml", file)), []byte(text.String()), 0o600); err != nil {
					b.Fatal(err)
				}
			}
			for file := range all / each {
				write(file, "10.0.0.1")
			}
			m, err := OpenManifests(dir, slog.New(slog.DiscardHandler))
			if err != nil {
				b.Fatal(err)
			}
			defer m.Close()
			if s := <-m.Snapshots(); len(s.Input.Sandboxes) != all {
				b.Fatalf("%d sandboxes: %v", len(s.Input.Sandboxes), s.Problems)
			}
			var work time.Duration
			n := 0
			for b.Loop() {
				to := fmt.Sprintf("10.0.%d.%d", 1+n/250, 1+n%250)
				n++
				write(all/each/2, to)
				began := worked(b)
				for done := false; !done; {
					s := <-m.Snapshots()
					done = s.Input.Sandboxes[all/each/2*each].Redirects[0].To.Address.String() == to
				}
				work += worked(b) - began
			}
			b.ReportMetric(work.Seconds()*1000/float64(n), "cpu-ms/op")
		})
	}
}

func worked(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
