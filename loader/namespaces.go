// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/sidetrack-dev/sidetrack/bpf"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// Listener is where the router listens inside one network namespace.
type Listener struct {
	// Port4 is the port of a socket at 0.0.0.0 bound to lo; zero: there is none.
	Port4 uint16
	// Port6 is the port of a socket at [::1]; zero: there is none. That socket is
	// not bound to lo: it could not answer clients that have bound themselves to
	// an IPv6 address of eth0, because IPv6 finds no way back to them by lo.
	Port6 uint16
}

// SetNamespaces says in which namespaces connections may be captured; all others
// are left alone. Call it with a namespace after the router listens there, and
// without it before the router stops.
func (k *Kernel) SetNamespaces(want map[routing.Cookie]Listener) error {
	return k.do(func() error {
		k.steering.Lock()
		defer k.steering.Unlock()
		return k.setNamespaces(want)
	})
}

func (k *Kernel) setNamespaces(want map[routing.Cookie]Listener) error {
	m := k.kept(bpf.SdMapSdNamespaces)
	for c := range k.listeners {
		if _, ok := want[c]; ok {
			continue
		}
		if err := m.Delete(uint64(c)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forget a namespace: %w", err)
		}
		delete(k.listeners, c)
	}
	left := 0
	for c, l := range want {
		have, ok := k.listeners[c]
		if ok && have == l {
			continue
		}
		if !ok && len(k.listeners) >= int(k.cfg.MaxNamespaces) {
			left++
			continue
		}
		if err := m.Put(uint64(c), bpf.SdListener{Port4: bpfPort(l.Port4), Port6: bpfPort(l.Port6)}); err != nil {
			return fmt.Errorf("set the listener of a namespace: %w", err)
		}
		k.listeners[c] = l
	}
	if left > 0 {
		return fmt.Errorf("%d of %d network namespaces do not fit into the kernel's map, and their connections are not captured: raise --max-namespaces (now %d)",
			left, len(want), k.cfg.MaxNamespaces)
	}
	return nil
}

// V6OnlyDest returns the destination that a socket dialled whose connection came
// to [::1] instead of 127.a.b.c. The cookie is the client's socket's.
func (k *Kernel) V6OnlyDest(socketCookie uint64) (routing.DestID, bool) {
	var id uint32
	err := k.do(func() error { return k.kept(bpf.SdMapSdV6only).Lookup(socketCookie, &id) })
	return routing.DestID(id), err == nil
}
