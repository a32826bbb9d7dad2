// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/loader"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// Fill is a large table to be made and loaded.
type Fill struct {
	Sandboxes, Services, RedirectsEach int
	Cgroup, BPFFS                      string
	// Runner is a namespace that the last sandbox has a pod in. That one's
	// redirect of the Service at Address leads to Fork.
	Runner  routing.Cookie
	Address netip.Addr
	Fork    netip.Addr
}

// Filled is what it took.
type Filled struct {
	Size    routing.Size
	Compile time.Duration // of all
	Load    time.Duration // of the programs and empty maps
	Apply   time.Duration // of all, and attaching
	Changes []Changed
	Maps    int64 // bytes that the kernel accounts for the maps
	// Resident is what the process takes with all changes in force.
	Resident memory
}

// Changed is what a change of one object took, the median of several.
type Changed struct {
	What           string
	Steps          int // that the kernel's maps took
	Compile, Apply time.Duration
	// CPU is what both have worked, which others on the machine hardly change.
	CPU time.Duration
}

// worked is the CPU time that this process has used.
func worked() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// memory is in bytes, as /proc/PID/status says.
type memory struct{ RSS, Peak, Anonymous int64 }

func memoryOf(pid string) (m memory, err error) {
	for name, to := range map[string]*int64{"VmRSS": &m.RSS, "VmHWM": &m.Peak, "RssAnon": &m.Anonymous} {
		value := strings.TrimSuffix(procField("/proc/"+pid+"/status", name), " kB")
		if *to, err = strconv.ParseInt(value, 10, 64); err != nil {
			return m, fmt.Errorf("read %s of process %s: %w", name, pid, err)
		}
		*to <<= 10
	}
	return m, nil
}

// runFill loads the table, says what it took, and holds it until its standard
// input ends.
func runFill(args []string, in io.Reader, out io.Writer) error {
	if len(args) != 1 {
		return errors.New("fill: want: what to do, as JSON")
	}
	var f Fill
	if err := json.Unmarshal([]byte(args[0]), &f); err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	cfg := loader.DefaultConfig()
	cfg.Cgroup, cfg.BPFFS = f.Cgroup, f.BPFFS
	began := time.Now()
	k, err := loader.Open(cfg)
	if err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	res := Filled{Load: time.Since(began)}
	if err = f.fill(k, &res); err == nil {
		err = json.NewEncoder(out).Encode(res)
	}
	if err == nil {
		_, err = io.Copy(io.Discard, in)
	}
	return errors.Join(err, k.Close())
}

func (f *Fill) fill(k *loader.Kernel, res *Filled) error {
	in := f.input()
	began := time.Now()
	table, problems := routing.Compile(in, nil)
	res.Compile = time.Since(began)
	if len(problems) > 0 {
		return fmt.Errorf("fill: %d problems, the first: %s", len(problems), problems[0])
	}
	if err := k.RenewLease(time.Hour); err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	began = time.Now()
	if err := k.Apply(table); err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	res.Apply = time.Since(began)

	for _, c := range changesOfOne {
		changed := Changed{What: c.what}
		var compiling, applying, working []time.Duration
		for n := range repeats {
			// As sources do it: the lists of objects are new ones, and so is what the
			// object leads to that has changed.
			in = routing.Input{
				Services: slices.Clone(in.Services), Slices: slices.Clone(in.Slices), Pods: in.Pods, Sandboxes: slices.Clone(in.Sandboxes),
			}
			c.change(&in, n)
			began, before := time.Now(), worked()
			next, problems := routing.Compile(in, table)
			compiling = append(compiling, time.Since(began))
			work := worked() - before
			if len(problems) > 0 {
				return fmt.Errorf("fill: %s: %d problems, the first: %s", c.what, len(problems), problems[0])
			}
			changed.Steps = 0
			next.Diff(table, func(*routing.Step) bool { changed.Steps++; return true })
			if changed.Steps == 0 {
				return fmt.Errorf("fill: %s: nothing changes", c.what)
			}
			began, before = time.Now(), worked()
			if err := k.Apply(next); err != nil {
				return fmt.Errorf("fill: %s: %w", c.what, err)
			}
			applying = append(applying, time.Since(began))
			working = append(working, work+worked()-before)
			table = next
		}
		changed.Compile, changed.Apply, changed.CPU = middle(compiling), middle(applying), middle(working)
		res.Changes = append(res.Changes, changed)
	}
	res.Size = table.Size()

	in, table = routing.Input{}, nil
	debug.FreeOSMemory()
	var err error
	if res.Maps, err = mapMemory(); err != nil {
		return err
	}
	res.Resident, err = memoryOf("self")
	return err
}

// repeats is how often each change is made.
const repeats = 9

// changesOfOne are what changes nearly always: one object.
var changesOfOne = []struct {
	what   string
	change func(in *routing.Input, n int)
}{
	{"a redirect leads elsewhere", func(in *routing.Input, n int) {
		s := &in.Sandboxes[len(in.Sandboxes)/2]
		s.Redirects = slices.Clone(s.Redirects)
		s.Redirects[0].To.Address = nthEndpoint(1<<23 + n)
	}},
	{"a sandbox more", func(in *routing.Input, n int) {
		s := in.Sandboxes[0]
		s.Name.Name += fmt.Sprintf("-%d", n)
		s.Key += fmt.Sprintf("-%d", n)
		in.Sandboxes = append(in.Sandboxes, s)
	}},
	{"a sandbox less", func(in *routing.Input, n int) { in.Sandboxes = in.Sandboxes[:len(in.Sandboxes)-1] }},
	{"a redirected Service's pod is another", func(in *routing.Input, n int) {
		s := &in.Slices[1]
		s.Endpoints = []routing.Endpoint{{Addr: nthAddr(netip.MustParseAddr("10.99.0.0"), n), Ready: true}}
	}},
	{"a Service is redirected that was not", func(in *routing.Input, n int) {
		in.Services = append(in.Services, routing.Service{
			Name: routing.Name{Namespace: namespace, Name: fmt.Sprintf("first-%d", n)}, Addresses: []netip.Addr{nthAddr(netip.MustParseAddr("10.100.0.0"), n)},
			Ports: []routing.ServicePort{{Name: "http", Port: port, Protocol: routing.TCP}},
		})
		s := &in.Sandboxes[1]
		s.Redirects = append(slices.Clip(s.Redirects), routing.Redirect{
			From: routing.ServiceRef{Service: fmt.Sprintf("first-%d", n)}, To: routing.Target{Address: nthEndpoint(1<<22 + n)}, Field: "spec.redirects[0]",
		})
	}},
}

func middle(ds []time.Duration) time.Duration {
	slices.Sort(ds)
	return ds[len(ds)/2]
}

// namespace is where all objects are.
const namespace = "bench"

// input makes sandboxes that redirect some of the Services each, every redirect
// to an address of its own.
func (f *Fill) input() routing.Input {
	var in routing.Input
	for i := range f.Services {
		name := routing.Name{Namespace: namespace, Name: "web-" + strconv.Itoa(i)}
		in.Services = append(in.Services, routing.Service{
			Name: name, Addresses: []netip.Addr{nthAddr(netip.MustParseAddr("10.97.0.0"), i)},
			Ports: []routing.ServicePort{{Name: "http", Port: port, Protocol: routing.TCP}},
		})
		in.Slices = append(in.Slices, routing.EndpointSlice{
			Name: routing.Name{Namespace: namespace, Name: name.Name + "-x"}, Service: name.Name,
			Ports:     []routing.EndpointPort{{Name: "http", Port: port, Protocol: routing.TCP}},
			Endpoints: []routing.Endpoint{{Addr: nthAddr(netip.MustParseAddr("10.98.0.0"), i), Ready: true}},
		})
	}
	in.Services[0].Addresses = []netip.Addr{f.Address}
	for i := range f.Sandboxes {
		s := routing.Sandbox{
			Name:      routing.Name{Namespace: namespace, Name: "pr-" + strconv.Itoa(i)},
			Key:       fmt.Sprintf("key-of-sandbox-%08d", i),
			Redirects: make([]routing.Redirect, f.RedirectsEach),
		}
		for j := range s.Redirects {
			s.Redirects[j] = routing.Redirect{
				From:  routing.ServiceRef{Service: in.Services[(i+j)%f.Services].Name.Name},
				To:    routing.Target{Address: nthEndpoint(i*f.RedirectsEach + j), Port: strconv.Itoa(int(port))},
				Field: fmt.Sprintf("spec.redirects[%d]", j),
			}
		}
		in.Sandboxes = append(in.Sandboxes, s)
	}
	last := &in.Sandboxes[f.Sandboxes-1]
	last.Redirects[0].From.Service = in.Services[0].Name.Name
	last.Redirects[0].To.Address = f.Fork
	// Not a second redirect of the same Service.
	for j := 1; j < f.RedirectsEach; j++ {
		last.Redirects[j].From.Service = in.Services[j].Name.Name
	}
	in.Pods = []routing.Pod{{Name: routing.Name{Namespace: namespace, Name: "runner"}, Netns: f.Runner, Sandbox: last.Name.Name}}
	return in
}

func nthEndpoint(n int) netip.Addr { return nthAddr(netip.MustParseAddr("11.0.0.0"), n) }

func nthAddr(first netip.Addr, n int) netip.Addr {
	b := first.As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n))
	return netip.AddrFrom4(b)
}

// mapMemory adds up what the kernel says of the maps that this process holds.
func mapMemory() (int64, error) {
	files, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil {
		return 0, fmt.Errorf("list descriptors: %w", err)
	}
	sum := int64(0)
	for _, file := range files {
		b, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue // the descriptor that listed the others
		}
		if err != nil {
			return 0, fmt.Errorf("read about a descriptor: %w", err)
		}
		text := string(b)
		if !strings.Contains(text, "map_type:") {
			continue
		}
		_, after, ok := strings.Cut(text, "memlock:")
		value, _, _ := strings.Cut(after, "\n")
		n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
		if !ok || err != nil {
			return 0, fmt.Errorf("the kernel does not say how large a map is: %q", text)
		}
		sum += n
	}
	return sum, nil
}
