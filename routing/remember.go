// SPDX-License-Identifier: Apache-2.0

package routing

// A DestID means something to one line of tables only. Whoever goes on with
// connections that another line has numbered begins with what that line knew of
// their destinations.

// Remembered is a destination as another process's table knew it.
type Remembered struct {
	ID   DestID
	Dest DestKey
	// Ports are the Service ports whose destination it was: they say which
	// redirects apply to it once it has left the table.
	Ports []RememberedPort
}

// RememberedPort is a port of a Service.
type RememberedPort struct {
	Service  Name
	Port     uint16
	Protocol Protocol
}

// Remember returns what t knows of a destination, so that another table can
// begin with it.
func (t *Table) Remember(id DestID) (Remembered, bool) {
	d := t.byID[id]
	if d == nil {
		return Remembered{}, false
	}
	r := Remembered{ID: id, Dest: d.key}
	for _, p := range d.ports {
		r.Ports = append(r.Ports, RememberedPort{p.service, p.port, p.protocol})
	}
	return r, true
}

// Recall returns a table that sends everything to the baseline and knows these
// destinations as if they had just left it. Tables compiled after it give their
// ids to nobody else, and answer for them.
func Recall(all []Remembered) *Table {
	t := &Table{}
	t.byID = map[DestID]*destInfo{}
	for _, r := range all {
		if r.ID == 0 || r.ID > MaxDestID || len(r.Ports) == 0 || t.byID[r.ID] != nil {
			continue
		}
		d := &destInfo{key: r.Dest, service: r.Ports[0].Service}
		for _, p := range r.Ports {
			d.ports = append(d.ports, servicePort{p.Service, p.Port, p.Protocol})
		}
		t.byID[r.ID] = d
		t.retired = append(t.retired, r.ID)
		t.next.dest = max(t.next.dest, r.ID)
	}
	return t
}
