// SPDX-License-Identifier: Apache-2.0

// Command calls is a gRPC server and its clients, on grpc-go, for what the suites
// of others do not look at: who has answered, and what happens to streams over
// time. Messages are bytes without a schema, so that clients in other languages
// need none.
//
//	calls serve -name fork-a -port 20001    answers every method of server.go
//	calls run -address A -want fork-a       runs the cases of cases.go, or those named
//	calls load -address A -keys k1=fork-a   many calls with keys mixed, on a few connections
//
// run and load print a line of JSON for each case, and exit with 1 when something
// is wrong.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "calls:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) < 2 {
		return errors.New("want: serve, run or load")
	}
	switch args := os.Args[2:]; os.Args[1] {
	case "serve":
		return serve(args)
	case "run":
		return runCases(args)
	case "load":
		return load(args)
	}
	return fmt.Errorf("nothing is known of %q", os.Args[1])
}

// result is what a case says.
type result struct {
	Case  string
	Error string // empty: passed
}

func say(r any) {
	// Nobody to tell when it fails.
	_ = json.NewEncoder(os.Stdout).Encode(r)
}

// raw is the codec of messages without a schema.
type raw struct{}

var _ encoding.CodecV2 = raw{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("a message of type %T", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(*b)}, nil
}

func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("a message of type %T", v)
	}
	*b = slices.Clone(data.Materialize())
	return nil
}
