// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// patience is how long anything may take before it is called stuck.
const patience = 60 * time.Second

// keyHeader carries a routing key.
const keyHeader = "x-sidetrack-key"

// inBaggage tags calls as OpenTelemetry's propagators do.
var inBaggage bool

// client calls one server over one connection.
type client struct {
	conn *grpc.ClientConn
	want string // who has to answer
	key  string // empty: untagged
	hold time.Duration
}

func dial(address string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(raw{}), grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)))
}

func (c *client) context(d time.Duration) (context.Context, context.CancelFunc) {
	ctx := context.Background()
	switch {
	case c.key == "":
	case inBaggage:
		ctx = metadata.AppendToOutgoingContext(ctx, "baggage", "userid=alice,sidetrack="+c.key+",region=eu-central")
	default:
		ctx = metadata.AppendToOutgoingContext(ctx, keyHeader, c.key)
	}
	return context.WithTimeout(ctx, d)
}

// checked returns an answer without its server's name, which has to be the right
// one.
func (c *client) checked(answer []byte) ([]byte, error) {
	name, rest, _ := bytes.Cut(answer, []byte("|"))
	if string(name) != c.want {
		return nil, fmt.Errorf("%q has answered, want %q", name, c.want)
	}
	return rest, nil
}

func (c *client) unary(ctx context.Context, method string, request []byte, options ...grpc.CallOption) ([]byte, error) {
	var answer []byte
	if err := c.conn.Invoke(ctx, "/calls/"+method, &request, &answer, options...); err != nil {
		return nil, err
	}
	return c.checked(answer)
}

// stream is a call of any kind.
type stream struct {
	grpc.ClientStream
	c *client
}

func (c *client) stream(ctx context.Context, method string, options ...grpc.CallOption) (stream, error) {
	s, err := c.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/calls/"+method, options...)
	return stream{s, c}, err
}

func (s stream) send(m []byte) error {
	err := s.SendMsg(&m)
	if errors.Is(err, io.EOF) {
		// The call is over, and the reason is what there is to receive.
		if _, reason := s.receive(); reason != nil {
			return reason
		}
	}
	return err
}

func (s stream) receive() ([]byte, error) {
	var m []byte
	if err := s.RecvMsg(&m); err != nil {
		return nil, err
	}
	return s.c.checked(m)
}

// end wants the stream to be over.
func (s stream) end() error {
	if m, err := s.receive(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%d bytes and %v after the last message, want the end", len(m), err)
	}
	return nil
}

var cases = map[string]func(c *client) error{
	"unary":            (*client).plain,
	"compressed":       (*client).compressed,
	"large messages":   (*client).large,
	"client streaming": (*client).upload,
	"server streaming": (*client).download,
	"a message comes before the next is sent": (*client).chat,
	"metadata":      (*client).metadata,
	"status codes":  (*client).statuses,
	"deadline":      (*client).deadline,
	"cancellation":  (*client).cancellation,
	"unread stream": (*client).unread,
	"many streams":  (*client).many,
	"held stream":   (*client).held,
}

func runCases(args []string) error {
	f := flag.NewFlagSet("run", flag.ContinueOnError)
	address := f.String("address", "", "host:port of the server")
	want := f.String("want", "", "the server's name")
	key := f.String("key", "", "a routing key")
	hold := f.Duration("hold", 5*time.Second, "how long to hold a stream")
	if err := f.Parse(args); err != nil {
		return err
	}
	names := f.Args()
	if len(names) == 0 {
		names = slices.Sorted(maps.Keys(cases))
	}
	var wg sync.WaitGroup
	for _, name := range names {
		one := cases[name]
		if one == nil {
			return fmt.Errorf("there is no case %q", name)
		}
		// Each on a connection of its own.
		wg.Go(func() {
			conn, err := dial(*address)
			if err == nil {
				err = one(&client{conn: conn, want: *want, key: *key, hold: *hold})
				conn.Close()
			}
			r := result{Case: name}
			if err != nil {
				r.Error = err.Error()
			}
			said.Lock()
			defer said.Unlock()
			say(r)
		})
	}
	wg.Wait()
	return nil
}

var said sync.Mutex

func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	return b
}

func (c *client) plain() error {
	ctx, cancel := c.context(patience)
	defer cancel()
	for _, n := range []int{0, 1, 100, 20_000} {
		got, err := c.unary(ctx, "Echo", noise(n))
		if err != nil {
			return err
		}
		if !bytes.Equal(got, noise(n)) {
			return fmt.Errorf("sent %d bytes, got %d others", n, len(got))
		}
	}
	return nil
}

func (c *client) compressed() error {
	ctx, cancel := c.context(patience)
	defer cancel()
	text := bytes.Repeat([]byte("again and "), 20_000)
	got, err := c.unary(ctx, "Echo", text, grpc.UseCompressor(gzip.Name))
	if err == nil && !bytes.Equal(got, text) {
		err = fmt.Errorf("sent %d bytes, got %d others", len(text), len(got))
	}
	return err
}

func (c *client) large() error {
	ctx, cancel := c.context(patience)
	defer cancel()
	b := noise(16 << 20)
	got, err := c.unary(ctx, "Echo", b)
	if err == nil && !bytes.Equal(got, b) {
		err = fmt.Errorf("sent %d bytes, got %d others", len(b), len(got))
	}
	return err
}

func (c *client) upload() error {
	ctx, cancel := c.context(patience)
	defer cancel()
	s, err := c.stream(ctx, "Sum")
	if err != nil {
		return err
	}
	const n, size = 500, 3000
	for range n {
		if err := s.send(noise(size)); err != nil {
			return err
		}
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	got, err := s.receive()
	if err != nil {
		return err
	}
	if want := fmt.Sprintf("%d %d", n, n*size); string(got) != want {
		return fmt.Errorf("the server says %q, want %q", got, want)
	}
	return s.end()
}

func (c *client) download() error {
	ctx, cancel := c.context(patience)
	defer cancel()
	s, err := c.stream(ctx, "Repeat")
	if err != nil {
		return err
	}
	const n, size = 500, 3000
	if err := errors.Join(s.send(fmt.Appendf(nil, "%d %d", n, size)), s.CloseSend()); err != nil {
		return err
	}
	for i := range n {
		m, err := s.receive()
		if err != nil {
			return fmt.Errorf("message %d: %w", i, err)
		}
		if len(m) != size {
			return fmt.Errorf("message %d has %d bytes, want %d", i, len(m), size)
		}
	}
	return s.end()
}

// chat sends the next message when the answer to the last one is there: whoever
// waits for more before he passes anything on stops it for ever.
func (c *client) chat() error {
	ctx, cancel := c.context(patience)
	defer cancel()
	s, err := c.stream(ctx, "Chat")
	if err != nil {
		return err
	}
	for i := range 100 {
		m := []byte(strconv.Itoa(i) + strings.Repeat(".", i*i))
		if err := s.send(m); err != nil {
			return err
		}
		got, err := s.receive()
		if err != nil {
			return fmt.Errorf("message %d: %w", i, err)
		}
		if !bytes.Equal(got, m) {
			return fmt.Errorf("message %d came back as %d bytes, want %d", i, len(got), len(m))
		}
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	return s.end()
}

func (c *client) metadata() error {
	ctx, cancel := c.context(patience)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "x-two", "second", "x-two", "first", "x-bytes-bin", "\x00\x01\xff", "x-empty", "", "x-long", strings.Repeat("v", 6000))
	var header, trailer metadata.MD
	got, err := c.unary(ctx, "Metadata", nil, grpc.Header(&header), grpc.Trailer(&trailer))
	if err != nil {
		return err
	}
	var md metadata.MD
	if err := json.Unmarshal(got, &md); err != nil {
		return err
	}
	for name, want := range map[string][]string{
		"x-two": {"second", "first"}, "x-empty": {""}, "x-long": {strings.Repeat("v", 6000)}, "content-type": {"application/grpc+proto"},
	} {
		if !slices.Equal(md[name], want) {
			return fmt.Errorf("the server saw %s: %q, want %q", name, md[name], want)
		}
	}
	if c.key != "" && !slices.Equal(md[keyHeader], []string{c.key}) {
		return fmt.Errorf("the server saw %d keys, want one", len(md[keyHeader]))
	}
	if len(md["x-bytes-bin"]) != 1 {
		return fmt.Errorf("the server saw %q as x-bytes-bin", md["x-bytes-bin"])
	}
	for _, tt := range []struct {
		md   metadata.MD
		name string
		want []string
	}{
		{header, "x-answer", []string{"one", "two"}}, {header, "x-answer-bin", []string{"\x00\xff\x80"}},
		{trailer, "x-trailer", []string{"last"}}, {trailer, "x-trailer-bin", []string{"\x01\xfe"}},
	} {
		if !slices.Equal(tt.md[tt.name], tt.want) {
			return fmt.Errorf("%s is %q, want %q", tt.name, tt.md[tt.name], tt.want)
		}
	}
	return nil
}

func (c *client) statuses() error {
	ctx, cancel := c.context(patience)
	defer cancel()
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		text := fmt.Sprintf("☺ 100%% of %d,\tand\n%s", code, strings.Repeat("more ", int(code)*20))
		var trailer metadata.MD
		_, err := c.unary(ctx, "Status", fmt.Appendf(nil, "%d %s", code, text), grpc.Trailer(&trailer))
		if s := status.Convert(err); s.Code() != code || s.Message() != text {
			return fmt.Errorf("%v, want code %d and %q", err, code, text)
		}
		if !slices.Equal(trailer["x-trailer"], []string{c.want}) {
			return fmt.Errorf("the trailer says that %q has answered, want %q", trailer["x-trailer"], c.want)
		}
	}
	return nil
}

// sleeping starts a call that the server would answer after a long time.
func (c *client) sleeping(ctx context.Context) (s stream, name, left string, err error) {
	name = fmt.Sprintf("sleep-%d", rand.Uint64())
	if s, err = c.stream(ctx, "Sleep"); err != nil {
		return s, name, "", err
	}
	if err := errors.Join(s.send([]byte(name)), s.CloseSend()); err != nil {
		return s, name, "", err
	}
	m, err := s.receive()
	return s, name, string(m), err
}

// wantEnded wants the server to have heard that the call is over.
func (c *client) wantEnded(name string) error {
	ctx, cancel := c.context(patience)
	defer cancel()
	for ctx.Err() == nil {
		got, err := c.unary(ctx, "Ended", []byte(name))
		if err != nil {
			return err
		}
		if len(got) > 0 {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return errors.New("the server never heard of the call's end")
}

func (c *client) deadline() error {
	const short = 2 * time.Second
	ctx, cancel := c.context(short)
	defer cancel()
	s, name, left, err := c.sleeping(ctx)
	if err != nil {
		return err
	}
	if d, err := time.ParseDuration(left); err != nil || d <= 0 || d > short {
		return fmt.Errorf("the server has %q left, want a part of %s", left, short)
	}
	if _, err := s.receive(); status.Code(err) != codes.DeadlineExceeded {
		return fmt.Errorf("%v, want a deadline that is exceeded", err)
	}
	return c.wantEnded(name)
}

func (c *client) cancellation() error {
	ctx, cancel := c.context(patience)
	defer cancel()
	s, name, _, err := c.sleeping(ctx)
	if err != nil {
		return err
	}
	cancel()
	if _, err := s.receive(); status.Code(err) != codes.Canceled {
		return fmt.Errorf("%v, want that it is cancelled", err)
	}
	return c.wantEnded(name)
}

// unread leaves the messages of some streams where they are: the others of the
// connection must not wait for that.
func (c *client) unread() error {
	ctx, cancel := c.context(patience)
	defer cancel()
	var idle []stream
	for range 3 {
		s, err := c.stream(ctx, "Repeat")
		if err != nil {
			return err
		}
		if err := errors.Join(s.send([]byte("1000 60000")), s.CloseSend()); err != nil {
			return err
		}
		if _, err := s.receive(); err != nil {
			return err
		}
		idle = append(idle, s)
	}
	for i := range 200 {
		if _, err := c.unary(ctx, "Echo", noise(5000)); err != nil {
			return fmt.Errorf("call %d beside streams that are not read: %w", i, err)
		}
	}
	// And one of them goes on where it was.
	for i := 1; i < 1000; i++ {
		if _, err := idle[0].receive(); err != nil {
			return fmt.Errorf("message %d of a stream that was left alone: %w", i, err)
		}
	}
	return idle[0].end()
}

func (c *client) many() error {
	ctx, cancel := c.context(patience)
	defer cancel()
	const n = 300
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			got, err := c.unary(ctx, "Echo", noise(i*50))
			if err == nil && !bytes.Equal(got, noise(i*50)) {
				err = errors.New("another call's answer")
			}
			errs[i] = err
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// held keeps a stream open without a word.
func (c *client) held() error {
	ctx, cancel := c.context(patience + c.hold)
	defer cancel()
	s, err := c.stream(ctx, "Chat")
	if err != nil {
		return err
	}
	for range 2 {
		if err := s.send([]byte("still there?")); err != nil {
			return err
		}
		if _, err := s.receive(); err != nil {
			return err
		}
		time.Sleep(c.hold / 2)
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	return s.end()
}
