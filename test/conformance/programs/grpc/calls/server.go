// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/encoding/gzip" // answers as it was asked
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const maxMessage = 64 << 20

func serve(args []string) error {
	f := flag.NewFlagSet("serve", flag.ContinueOnError)
	s := &server{ended: map[string]string{}}
	f.StringVar(&s.name, "name", "", "who answers")
	port := f.Int("port", 0, "the port to listen on")
	age := f.Duration("max-age", 0, "a connection's longest life; 0: for ever")
	streams := f.Uint("max-streams", 0, "streams of a connection at a time; 0: any number")
	if err := f.Parse(args); err != nil {
		return err
	}
	l, err := net.Listen("tcp", ":"+strconv.Itoa(*port))
	if err != nil {
		return err
	}
	options := []grpc.ServerOption{
		grpc.ForceServerCodecV2(raw{}), grpc.UnknownServiceHandler(s.handle),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	}
	if *age > 0 {
		options = append(options, grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: *age}))
	}
	if *streams > 0 {
		options = append(options, grpc.MaxConcurrentStreams(uint32(*streams)))
	}
	return grpc.NewServer(options...).Serve(l)
}

type server struct {
	name string

	mu    sync.Mutex
	ended map[string]string // what ended a Sleep, by its name
}

// handle answers all methods; what comes before the method's name is no matter.
// Every answer begins with the server's name and a bar.
func (s *server) handle(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	ctx := stream.Context()
	answer := func(b []byte) error {
		m := append([]byte(s.name+"|"), b...)
		return stream.SendMsg(&m)
	}
	var first []byte
	if err := stream.RecvMsg(&first); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	switch path.Base(method) {
	case "Echo": // unary
		return answer(first)
	case "Metadata": // unary: what has come, and some of its own
		md, _ := metadata.FromIncomingContext(ctx)
		if err := stream.SetHeader(metadata.Pairs("x-answer", "one", "x-answer", "two", "x-answer-bin", "\x00\xff\x80")); err != nil {
			return err
		}
		stream.SetTrailer(metadata.Pairs("x-trailer", "last", "x-trailer-bin", "\x01\xfe"))
		b, err := json.Marshal(md)
		if err != nil {
			return err
		}
		return answer(b)
	case "Sum": // client streaming
		n, bytes := 0, 0
		for m, err := first, error(nil); ; err = stream.RecvMsg(&m) {
			if errors.Is(err, io.EOF) {
				return answer(fmt.Appendf(nil, "%d %d", n, bytes))
			}
			if err != nil {
				return err
			}
			n, bytes = n+1, bytes+len(m)
		}
	case "Repeat": // server streaming: "number size"
		var n, size int
		if _, err := fmt.Sscan(string(first), &n, &size); err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
		m := make([]byte, size)
		for range n {
			if err := answer(m); err != nil {
				return err
			}
		}
		return nil
	case "Chat": // bidirectional: each message comes back
		for m, err := first, error(nil); ; err = stream.RecvMsg(&m) {
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err == nil {
				err = answer(m)
			}
			if err != nil {
				return err
			}
		}
	case "Status": // unary: "code text"
		code, text, _ := strings.Cut(string(first), " ")
		n, err := strconv.Atoi(code)
		if err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
		stream.SetTrailer(metadata.Pairs("x-trailer", s.name))
		return status.Error(codes.Code(n), text)
	case "Sleep": // unary: until the caller gives up; it says first that it has begun
		return s.sleep(ctx, string(first), answer)
	case "Ended": // unary: what ended the Sleep of that name; empty: nothing yet
		s.mu.Lock()
		defer s.mu.Unlock()
		return answer([]byte(s.ended[string(first)]))
	}
	return status.Errorf(codes.Unimplemented, "%s has no method %s", s.name, method)
}

func (s *server) sleep(ctx context.Context, name string, answer func([]byte) error) error {
	left := "none"
	if d, ok := ctx.Deadline(); ok {
		left = time.Until(d).Round(time.Millisecond).String()
	}
	if err := answer([]byte(left)); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-time.After(time.Minute):
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended[name] = fmt.Sprint(ctx.Err())
	return status.FromContextError(ctx.Err()).Err()
}
