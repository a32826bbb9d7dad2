// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/programs"
)

// TestAForkThatIsNotReadyIsUnavailable: gRPC clients get a status that names the
// sandbox, others a 503, and the connection goes on.
func TestAForkThatIsNotReadyIsUnavailable(t *testing.T) {
	programs.Need(t, "curl")
	w := newWorld(t)
	port := w.port()
	calls := w.serveCalls(t, port)
	address := fmt.Sprintf("%s:%d", serviceIP, port)

	t.Run("grpc-go", func(t *testing.T) {
		got := caseResults(t, w.client.Command(calls, "run", "-address", address, "-want", "baseline", "-key", goneKey, "unary", "held stream", "client streaming"))
		if len(got) != 3 {
			t.Errorf("%d cases have run, want 3", len(got))
		}
		for name, result := range got {
			if !strings.Contains(result, "code = Unavailable") || !strings.Contains(result, "gone") {
				t.Errorf("%s: %s, want Unavailable and the sandbox's name", name, result)
			}
		}
	})
	t.Run("among other calls", func(t *testing.T) {
		got := w.load(t, w.client, calls, port, "-keys", mixed()+","+goneKey+"=nobody", "-connections", "2", "-calls", "2000")
		if got.Misrouted != 0 || got.Answered["nobody"] != 0 || got.Failed < 200 || got.Failed > 800 || !strings.Contains(got.First, "gone") {
			t.Errorf("%+v, want a fifth of the calls to fail by the sandbox's name", got)
		}
	})
	t.Run("curl", func(t *testing.T) {
		out, err := output(t, w.client.Command("curl", "-sS", "--http2-prior-knowledge", "-H", keyHeader+": "+goneKey,
			"-w", "\n%{http_code} %{http_version}", "http://"+address+"/"), time.Minute)
		if err != nil || !strings.HasSuffix(out, "\n503 2") || !strings.Contains(out, "gone") {
			t.Errorf("curl: %v: %q, want a 503 that names the sandbox", err, out)
		}
	})
}
