// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// The hooks see an MPTCP socket's subflow connect, and the socket itself asked
// for its peer.
func TestMPTCPSocketsAreRedirectedCapturedAndShownWhatTheyDialled(t *testing.T) {
	s := newScene(t)
	s.start()
	r := s.steer(s.other)
	v4, v6 := at(webVIP4, 80), at(webVIP6, 80)
	s.mptcp(s.tagged, unix.AF_INET).mustConnect(v4).mustHear("fork").mustShowPeer(v4)
	s.mptcp(s.tagged, unix.AF_INET6).mustConnect(v4).mustHear("fork").mustShowPeer(v4)
	s.mptcp(s.tagged, unix.AF_INET6).mustConnect(v6).mustHear("fork").mustShowPeer(v6)
	s.mptcp(s.other, unix.AF_INET).mustConnect(v4).mustHear("router").mustShowPeer(v4)
	r.mustHaveCaptured(s, v4)
	s.mptcp(s.other, unix.AF_INET6).mustConnect(v6).mustHear("router").mustShowPeer(v6)
	r.mustHaveCaptured(s, v6)
}

func (s *scene) mptcp(p *lab.Pod, family int) *sock {
	s.Helper()
	c := &sock{scene: s, family: family}
	err := p.Do(func() (err error) {
		c.fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
		return err
	})
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		s.Skip("this kernel is built without CONFIG_MPTCP")
	}
	s.must(err)
	s.Cleanup(c.close)
	return c
}
