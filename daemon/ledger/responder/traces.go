// SPDX-License-Identifier: Apache-2.0

package responder

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"time"

	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger/wire"
	"github.com/sidetrack-dev/sidetrack/routing"
)

const (
	// maxWords is how many announcements wait at most; what is more is not made.
	maxWords = 1024
	// speakers is how many requests with announcements are under way at most.
	speakers = 4
	// speakLimit is how long one may take.
	speakLimit = 2 * time.Second
	// maxEndpoints bounds an announcement; of a larger fork the first are told.
	maxEndpoints = 64
)

// announce is for ledger.Announce.
func (r *Responder) announce(a ledger.Announcement) {
	select {
	case r.words <- a:
	default:
		if a.Told != nil {
			a.Told()
		}
	}
}

// speak tells other nodes, by way of the collector, until ctx is over.
func (r *Responder) speak(ctx context.Context) {
	for {
		var said []ledger.Announcement
		select {
		case <-ctx.Done():
			return
		case a := <-r.words:
			said = append(said, a)
		}
		for more := true; more && len(said) < wire.MaxTraces; {
			select {
			case a := <-r.words:
				said = append(said, a)
			default:
				more = false
			}
		}
		if err := r.say(ctx, said); err != nil && ctx.Err() == nil {
			r.log.Debug("ledger: other nodes have not been told of a trace", "err", short(err))
		}
		for i := range said {
			if said[i].Told != nil {
				said[i].Told()
			}
		}
	}
}

func (r *Responder) say(ctx context.Context, said []ledger.Announcement) error {
	ctx, cancel := context.WithTimeout(ctx, speakLimit)
	defer cancel()
	traces := make([]wire.Trace, 0, len(said))
	for i := range said {
		a := said[i]
		a.Endpoints = a.Endpoints[:min(len(a.Endpoints), maxEndpoints)]
		traces = append(traces, word(&a))
	}
	body, err := json.Marshal(traces)
	if err != nil {
		return err
	}
	return r.send(ctx, wire.TracesPath(r.node), body)
}

// hear takes in what another node has said.
func (r *Responder) hear(traces []wire.Trace) {
	for _, a := range announcements(traces) {
		r.ledger.Heard(a)
	}
}

func word(a *ledger.Announcement) wire.Trace {
	t := wire.Trace{
		ID: a.Trace.String(), Group: a.Owner.Group, Namespace: a.Owner.Name.Namespace, Name: a.Owner.Name.Name,
		ServiceNamespace: a.Service.Namespace, Service: a.Service.Name,
	}
	for _, e := range a.Endpoints {
		t.Endpoints = append(t.Endpoints, e.String())
	}
	return t
}

// announcements leaves out what is not understood.
func announcements(traces []wire.Trace) []ledger.Announcement {
	all := make([]ledger.Announcement, 0, len(traces))
	for i := range traces {
		t := &traces[i]
		a := ledger.Announcement{
			Trace:   ledger.ParseTraceID(t.ID),
			Owner:   ledger.Owner{Name: routing.Name{Namespace: t.Namespace, Name: t.Name}, Group: t.Group},
			Service: routing.Name{Namespace: t.ServiceNamespace, Name: t.Service},
		}
		for _, e := range t.Endpoints {
			if ap, err := netip.ParseAddrPort(e); err == nil {
				a.Endpoints = append(a.Endpoints, ap)
			}
		}
		if len(t.Endpoints) == 0 || len(a.Endpoints) > 0 {
			all = append(all, a)
		}
	}
	return all
}

// send posts a body that is answered with nothing.
func (r *Responder) send(ctx context.Context, path string, body []byte) error {
	req, err := r.request(ctx, http.MethodPost, path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	return r.do(req)
}
