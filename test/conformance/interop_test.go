// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// interopCases are those of grpc-go's client that need neither TLS nor a cloud.
// (pick_first_unary wants a server that knows its own name, and grpc-go's does not.)
var interopCases = []string{
	"empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "empty_stream",
	"timeout_on_sleeping_server", "cancel_after_begin", "cancel_after_first_response", "status_code_and_message",
	"special_status_message", "custom_metadata", "unimplemented_method", "unimplemented_service",
	"rpc_soak", "channel_soak",
}

// orcaCases make a call of their own accord, which gets none of the metadata that
// the client's user adds: it is not tagged.
var orcaCases = []string{"orca_per_rpc", "orca_oob"}

// TestGRPCInteropIsTheSameThroughTheRouter: grpc-go's own client and server of
// the gRPC interoperability tests.
func TestGRPCInteropIsTheSameThroughTheRouter(t *testing.T) {
	client, server := program(t, "grpc", "interop-client"), program(t, "grpc", "interop-server")
	w := newWorld(t)
	ports := map[way]int{direct: w.port(), untagged: w.port(), tagged: w.port(), injected: w.port()}
	for v, port := range ports {
		w.serve(t, w.to(v), port, server, "-port", strconv.Itoa(port))
	}
	w.decoy(t, ports[tagged], ports[injected])
	run := func(cases ...string) run {
		return func(t *testing.T, v way, only []string) results {
			got := results{}
			for _, name := range cases {
				if len(only) == 0 || slices.Contains(only, name) {
					got[name] = w.interop(t, v, client, ports[v], name)
				}
			}
			return got
		}
	}
	comparison{cases: len(interopCases), failing: []string{}, run: run(interopCases...)}.over(t, untagged, tagged, injected)
	comparison{cases: len(orcaCases), failing: []string{}, run: run(orcaCases...)}.over(t, untagged, injected)
}

// interop runs one case of the interop client.
func (w *world) interop(t *testing.T, v way, client string, port int, name string) string {
	args := []string{"-server_host", serviceIP, "-server_port", strconv.Itoa(port), "-test_case", name,
		// A slow machine is no failure.
		"-soak_per_iteration_max_acceptable_latency_ms", "20000", "-soak_overall_timeout_seconds", "60", "-soak_num_threads", "2"}
	if key := w.key(v); key != "" {
		args = append(args, "-additional_metadata", keyHeader+":"+key)
	}
	if strings.HasPrefix(name, "orca") {
		args = append(args, "-service_config_json", `{"loadBalancingConfig":[{"test_backend_metrics_load_balancer":{}}]}`)
	}
	out, err := output(t, w.from(v).Command(client, args...), 2*time.Minute)
	if err != nil {
		return "failed: " + lastLine(out) + ": " + err.Error()
	}
	return passed
}

// output runs a program to its end, or kills it after some time.
func output(t *testing.T, cmd *exec.Cmd, patience time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return "", err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		return out.String(), err
	case <-ctx.Done():
		_ = cmd.Process.Kill()
		return out.String(), errors.Join(<-ended, ctx.Err())
	}
}

// stamp is when and where glog's lines were written.
var stamp = regexp.MustCompile(`^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d(\.\d+)? `)

func lastLine(out string) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return stamp.ReplaceAllString(lines[len(lines)-1], "")
}
