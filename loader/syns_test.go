// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// TestOneListenersClientsLeaveRoomForOthers: a pod whose clients send more SYNs
// than anybody reads loses its own.
func TestOneListenersClientsLeaveRoomForOthers(t *testing.T) {
	const most = 1024 // SYNS_OF_ONE
	pod := lab.New(t).MustPod("pod")
	syns, err := NewSYNs(0x3053)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syns.Close(); err != nil {
			t.Error(err)
		}
	})
	type listener struct {
		cookie uint64
		at     unix.Sockaddr
	}
	socket := func(flags int) (fd int) {
		if err := pod.Do(func() (err error) {
			fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|flags, 0)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	listen := func() (l listener) {
		fd := socket(0)
		err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
		if err == nil {
			err = unix.Listen(fd, 8)
		}
		if err == nil {
			l.at, err = unix.Getsockname(fd)
		}
		if err == nil {
			l.cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		}
		if err = errors.Join(err, syns.Attach(fd)); err != nil {
			t.Fatal(err)
		}
		return l
	}
	dial := func(l listener) (fd int) {
		fd = socket(unix.SOCK_NONBLOCK)
		if err := unix.Connect(fd, l.at); err != unix.EINPROGRESS {
			t.Fatalf("connect: %v", err)
		}
		return fd
	}
	told := map[uint64]int{}
	read := func() {
		var syn SYN
		for {
			ok, err := syns.Next(&syn)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				return
			}
			told[syn.Listener]++
			if syn.Hops == 0 || syn.From.Addr() != syn.To.Addr() {
				t.Fatalf("%+v", syn)
			}
		}
	}
	many, few := listen(), listen()
	began := time.Now()
	for range most + 100 {
		dial(many)
	}
	dial(few)
	for end := time.Now().Add(time.Minute); told[few.cookie] == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		read()
	}
	if told[few.cookie] == 0 {
		t.Error("a client of the other listener is not heard")
	}
	// Later they begin to send them again.
	if n := told[many.cookie]; n < most || n > most && time.Since(began) < time.Second {
		t.Errorf("%d clients of the busy listener are heard, want %d", n, most)
	}
	// When they have been read there is room again, for those that go on trying.
	for end := time.Now().Add(time.Minute); told[many.cookie] < most+100 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		read()
	}
	if n := told[many.cookie]; n < most+100 {
		t.Errorf("%d clients of the busy listener are heard at last, want %d", n, most+100)
	}

	// Who comes when all have been read need not come again.
	last := listen()
	began = time.Now()
	for range most {
		dial(last)
	}
	wait := func(n int) {
		for end := time.Now().Add(time.Minute); told[last.cookie] < n && time.Now().Before(end); time.Sleep(time.Millisecond) {
			read()
		}
		if told[last.cookie] < n {
			t.Errorf("%d clients of the last listener are heard, want %d", told[last.cookie], n)
		}
	}
	wait(most)
	before := told[last.cookie]
	var again []int
	for range 100 {
		again = append(again, dial(last))
	}
	wait(before + len(again))
	for _, fd := range again {
		info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
		if err != nil || info.Total_retrans > 0 && time.Since(began) < time.Second {
			t.Fatalf("a SYN was heard when it had come again: %+v, %v", info, err)
		}
	}
}
