// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// shimArg makes this test binary stand between connect's runner and a program
// that the runner starts. The runner is in one pod and the program has to be in
// another one; and what the runner tells the program, or the program the runner,
// has to be amended: the address of the Service instead of the server's own, and
// a header with the routing key. Both talk in messages of protobuf with their
// lengths in front, big-endian, 4 bytes. Appending a field to such a message sets
// it, or adds to it when it is repeated.
//
//	shim NETNS CGROUP requests|responses FIELDS -- PROGRAM ARGUMENTS
//
// FIELDS are appended to each message that goes in, or comes out. An empty
// CGROUP leaves the program in the runner's.
const shimArg = "sidetrack-conformance-shim"

// field encodes one field of a message that has a length: a string, or a message.
func field(number int, value string) string {
	b := binary.AppendUvarint(nil, uint64(number)<<3|2)
	return string(binary.AppendUvarint(b, uint64(len(value)))) + value
}

// header is connectrpc.conformance.v1.Header.
func header(name, value string) string { return field(1, name) + field(2, value) }

func runShim(args []string) int {
	if err := shim(args); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", shimArg, err)
		return 1
	}
	return 0
}

func shim(args []string) error {
	if len(args) < 6 || args[4] != "--" {
		return errors.New("want: namespace, cgroup, requests or responses, fields, --, a program")
	}
	// A child has the namespace of the thread that starts it, and dies with it.
	runtime.LockOSThread()
	if args[1] != "" {
		if err := os.WriteFile(args[1]+"/cgroup.procs", []byte("0"), 0); err != nil {
			return fmt.Errorf("enter the cgroup: %w", err)
		}
	}
	ns, err := unix.Open(args[0], unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the namespace %s: %w", args[0], err)
	}
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the namespace %s: %w", args[0], err)
	}
	cmd := exec.Command(args[5], args[6:]...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s) // it may just have ended
		}
	}()
	var forIn, forOut string
	if args[2] == "requests" {
		forIn = args[3]
	} else {
		forOut = args[3]
	}
	go func() {
		// The program ends by itself when it has no more requests.
		_ = amend(in, os.Stdin, forIn)
		in.Close()
	}()
	err = amend(os.Stdout, out, forOut)
	return errors.Join(cmd.Wait(), err)
}

// amend copies messages and appends the fields to each.
func amend(to io.Writer, from io.Reader, fields string) error {
	r := bufio.NewReader(from)
	for {
		var length [4]byte
		if _, err := io.ReadFull(r, length[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("read a message's length: %w", err)
		}
		n := binary.BigEndian.Uint32(length[:])
		if n > 64<<20 {
			return fmt.Errorf("a message of %d bytes", n)
		}
		message := make([]byte, 4+n, 4+int(n)+len(fields))
		if _, err := io.ReadFull(r, message[4:]); err != nil {
			return fmt.Errorf("read a message: %w", err)
		}
		message = append(message, fields...)
		binary.BigEndian.PutUint32(message, n+uint32(len(fields)))
		if _, err := to.Write(message); err != nil {
			return fmt.Errorf("pass a message on: %w", err)
		}
	}
}
