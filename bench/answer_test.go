// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"net/http"
	"strings"
	"testing"
)

func TestTaggedAndUntaggedRequestsHaveOneLength(t *testing.T) {
	for _, tagged := range []bool{false, true} {
		for _, closing := range []bool{false, true} {
			head := requestHead("web.bench", routingKey, tagged, closing)
			if len(head) != headBytes {
				t.Errorf("tagged %v, closing %v: %d bytes, want %d", tagged, closing, len(head), headBytes)
			}
			if !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
				t.Errorf("tagged %v, closing %v: the head does not end", tagged, closing)
			}
			if got := bytes.Contains(head, []byte("sidetrack="+routingKey)); got != tagged {
				t.Errorf("tagged %v, closing %v: carries a key: %v", tagged, closing, got)
			}
		}
	}
}

func TestCheckerFindsTheEndOfAnAnswerAtEveryByte(t *testing.T) {
	answer := response(fork, false)
	for round, c := 0, (checker{want: fork}); round < 2; round++ {
		for n := range answer {
			if got, err := c.next(answer[:n]); got != 0 || err != nil {
				t.Fatalf("round %d: of %d bytes: %d, %v; want 0, nil", round, n, got, err)
			}
		}
		if got, err := c.next(answer); got != len(answer) || err != nil {
			t.Fatalf("round %d: %d, %v; want %d, nil", round, got, err, len(answer))
		}
	}
}

func TestCheckerReportsWhatIsNotTheAnswerWanted(t *testing.T) {
	good := string(response(baseline, false))
	for name, answer := range map[string]string{
		"from the other server":      string(response(fork, false)),
		"an error":                   strings.Replace(good, "200 OK", "503 Service Unavailable", 1),
		"without a length":           strings.Replace(good, "Content-Length", "X-Length", 1),
		"with another body's length": "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbaseline\n",
		"not HTTP":                   "220 mail.example ESMTP\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c := checker{want: baseline}
			if _, err := c.next([]byte(good)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.next([]byte(answer)); !errors.As(err, new(wrongAnswer)) {
				t.Errorf("error %v, want a wrongAnswer", err)
			}
		})
	}
}

func TestCheckerTakesAnAnswerWhoseHeadersHaveChanged(t *testing.T) {
	c := checker{want: baseline}
	for _, answer := range []string{
		string(response(baseline, false)),
		strings.Replace(string(response(baseline, false)), "Server: bench", "server: proxy", 1),
	} {
		if n, err := c.next([]byte(answer)); n != len(answer) || err != nil {
			t.Errorf("%d, %v; want %d, nil", n, err, len(answer))
		}
	}
}

// answering is a handler that answers as the server of that name does.
func answering(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, body, _ := bytes.Cut(response(name, false), []byte("\r\n\r\n"))
		// The client may have gone; there is nobody to tell.
		_, _ = w.Write(body)
	})
}
