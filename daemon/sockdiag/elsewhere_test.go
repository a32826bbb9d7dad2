// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"cmp"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// BenchmarkElsewhere is what a socket costs that is freed in a namespace in which nobody hears
// of ends, while somebody does in another: the CPU time of this process and of the
// kernel's workers. Rounds without and with a listener take turns.
func BenchmarkElsewhere(b *testing.B) {
	w := lab.New(b)
	heard, unheard := w.MustPod("heard"), w.MustPod("unheard")
	ns, err := os.Open(heard.Path)
	if err != nil {
		b.Fatal(err)
	}
	defer ns.Close()
	const connections = 10_000
	round := func(listen bool) (perSocket time.Duration) {
		if listen {
			e, err := OpenEnds(int(ns.Fd()), 1<<20)
			if err != nil {
				b.Fatal(err)
			}
			defer e.Close()
		}
		before := busy(b)
		if err := unheard.Do(func() error { return connectAndAbort(connections) }); err != nil {
			b.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond) // for the workers
		return (busy(b) - before) / (2 * connections)
	}
	round(true)
	var without, with, more []time.Duration
	for b.Loop() {
		a := round(false)
		z := round(true)
		without, with, more = append(without, a), append(with, z), append(more, z-a)
	}
	for name, all := range map[string][]time.Duration{"without": without, "with": with, "more": more} {
		slices.SortFunc(all, cmp.Compare)
		b.ReportMetric(float64(all[len(all)/2])/1e3, name+"-µs/socket")
		b.ReportMetric(float64(all[len(all)/4])/1e3, name+"-quarter-µs")
		b.ReportMetric(float64(all[len(all)*3/4])/1e3, name+"-three-quarters-µs")
	}
}

// connectAndAbort makes connections, each of two sockets that leave nothing behind.
func connectAndAbort(n int) error {
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(l)
	if err := unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	if err := unix.Listen(l, 16); err != nil {
		return err
	}
	to, err := unix.Getsockname(l)
	if err != nil {
		return err
	}
	for range n {
		c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := unix.Connect(c, to); err != nil {
			return err
		}
		s, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
		if err != nil {
			return err
		}
		if err := unix.SetsockoptLinger(c, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			return err
		}
		unix.Close(c)
		unix.Close(s)
	}
	return nil
}

// busy is how long this process and the kernel's workers have been on a CPU.
func busy(b *testing.B) (all time.Duration) {
	runtime.GC()
	paths, err := filepath.Glob("/proc/self/task/*/schedstat")
	if err != nil {
		b.Fatal(err)
	}
	comms, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		b.Fatal(err)
	}
	for _, p := range comms {
		if name, err := os.ReadFile(p); err == nil && strings.HasPrefix(string(name), "kworker/") {
			paths = append(paths, filepath.Join(filepath.Dir(p), "schedstat"))
		}
	}
	for _, p := range paths {
		text, err := os.ReadFile(p)
		if err != nil {
			continue // It has ended.
		}
		if f := strings.Fields(string(text)); len(f) > 0 {
			ns, _ := strconv.ParseInt(f[0], 10, 64)
			all += time.Duration(ns)
		}
	}
	return all
}
