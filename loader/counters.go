// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/sidetrack-dev/sidetrack/bpf"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// ExitCount says how often a program ended for a reason. Both are stable metric
// labels.
type ExitCount struct {
	Program, Reason string
	Count           uint64
}

// HitCount is what became of the flows of one route.
type HitCount struct{ Redirected, Refused uint64 }

// programLabels are the rows of sd_exits.
var programLabels = [bpf.SdProgramPROGRAM_LEN]string{
	bpf.SdProgramPROGRAM_CONNECT4: "connect4",
	bpf.SdProgramPROGRAM_CONNECT6: "connect6",
	bpf.SdProgramPROGRAM_SENDMSG4: "sendmsg4",
	bpf.SdProgramPROGRAM_SENDMSG6: "sendmsg6",
	bpf.SdProgramPROGRAM_RECVMSG4: "recvmsg4",
	bpf.SdProgramPROGRAM_RECVMSG6: "recvmsg6",
	bpf.SdProgramPROGRAM_GETPEER4: "getpeername4",
	bpf.SdProgramPROGRAM_GETPEER6: "getpeername6",
	bpf.SdProgramPROGRAM_CAPTURE4: "capture4",
	bpf.SdProgramPROGRAM_CAPTURE6: "capture6",
	bpf.SdProgramPROGRAM_HOLD:     "hold",
}

// reasonLabels are the columns of sd_exits; bpf/sidetrack.h says what they mean.
var reasonLabels = [bpf.SdReasonREASON_LEN]string{
	bpf.SdReasonREASON_UNTAGGED:     "untagged",
	bpf.SdReasonREASON_UNKNOWN_DEST: "unknown_destination",
	bpf.SdReasonREASON_NO_REDIRECT:  "no_redirect",
	bpf.SdReasonREASON_REDIRECTED:   "redirected",
	bpf.SdReasonREASON_UNNOTED:      "redirected_unnoted",
	bpf.SdReasonREASON_REFUSED:      "refused",
	bpf.SdReasonREASON_BASELINE:     "fell_back",
	bpf.SdReasonREASON_NO_BACKEND:   "no_backend",
	bpf.SdReasonREASON_AGENT:        "agent",
	bpf.SdReasonREASON_LEASE_OVER:   "lease_over",
	bpf.SdReasonREASON_DENIED:       "denied_before",
	bpf.SdReasonREASON_TRANSLATED:   "translated",
	bpf.SdReasonREASON_NOT_OURS:     "not_ours",
	bpf.SdReasonREASON_CAPTURED:     "captured",
	bpf.SdReasonREASON_CAPTURED_V6:  "captured_v6only",
	bpf.SdReasonREASON_NOT_CAPTURED: "not_captured",
	bpf.SdReasonREASON_TAGGED:       "tagged",
	bpf.SdReasonREASON_NOT_TCP:      "not_tcp",
	bpf.SdReasonREASON_BOUND:        "bound_to_device",
	bpf.SdReasonREASON_NO_LISTENER:  "no_listener",
	bpf.SdReasonREASON_HELD:         "held",
	bpf.SdReasonREASON_RING_FULL:    "ring_full",
	bpf.SdReasonREASON_NOT_SYN:      "not_syn",
	bpf.SdReasonREASON_TOO_EARLY:    "too_early",
}

// Exits returns how often each program ended for each reason that has come up,
// since the agent started.
func (k *Kernel) Exits() ([]ExitCount, error) {
	var out []ExitCount
	err := k.do(func() error {
		m := k.kept(bpf.SdMapSdExits)
		for p, program := range programLabels {
			for r, reason := range reasonLabels {
				var perCPU []uint64
				if err := m.Lookup(uint32(p*len(reasonLabels)+r), &perCPU); err != nil {
					return fmt.Errorf("read the programs' counters: %w", err)
				}
				var n uint64
				for _, c := range perCPU {
					n += c
				}
				if n > 0 {
					out = append(out, ExitCount{program, reason, n})
				}
			}
		}
		return nil
	})
	return out, err
}

// Hits returns what the flow programs did for each route, since the agent
// started. Routes that are gone are left out, and so are those that no flow
// has used yet.
func (k *Kernel) Hits() (hits map[routing.RouteKey]HitCount, err error) {
	err = k.do(func() error {
		hits, err = k.hits()
		return err
	})
	return hits, err
}

func (k *Kernel) hits() (map[routing.RouteKey]HitCount, error) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("read the routes' counters: %w", err)
	}
	const chunk = 1024
	var (
		hits   = map[routing.RouteKey]HitCount{}
		keys   = make([]bpf.SdRouteKey, chunk)
		values = make([]bpf.SdHits, chunk*cpus)
		cursor ebpf.MapBatchCursor
	)
	for {
		n, err := k.kept(bpf.SdMapSdHits).BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil, fmt.Errorf("read the routes' counters: %w", err)
		}
		for i, key := range keys[:n] {
			var h HitCount
			for _, v := range values[i*cpus : (i+1)*cpus] {
				h.Redirected += v.Redirected
				h.Refused += v.Refused
			}
			hits[routing.RouteKey{Sandbox: routing.SandboxID(key.Sandbox), Class: routing.ClassID(key.Class)}] = h
		}
		if err != nil {
			return hits, nil // that was the last
		}
	}
}
