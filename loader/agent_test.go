// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// agentEnv makes the test binary an agent that can be killed: its value is what
// agentOrders says, as JSON.
const agentEnv = "SIDETRACK_TEST_AGENT"

type agentOrders struct {
	Config Config
	Input  routing.Input
}

func TestMain(m *testing.M) {
	if orders := os.Getenv(agentEnv); orders != "" {
		if err := runAgent(orders); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runAgent applies the input, says so, and waits for its end.
func runAgent(orders string) error {
	var o agentOrders
	if err := json.Unmarshal([]byte(orders), &o); err != nil {
		return err
	}
	k, err := Open(o.Config)
	if err != nil {
		return err
	}
	table, _ := routing.Compile(o.Input, nil)
	if err := k.Apply(table); err != nil {
		return err
	}
	fmt.Println("ready")
	// Without anything else to do, Go would take select{} for a deadlock.
	for {
		time.Sleep(time.Hour)
	}
}

// agent is another process with a Kernel.
type agent struct {
	s   *scene
	cmd *exec.Cmd
}

// spawn starts an agent and waits until it has applied the input.
func (s *scene) spawn(cfg Config) *agent {
	s.Helper()
	a, err := s.trySpawn(cfg)
	s.must(err)
	return a
}

func (s *scene) trySpawn(cfg Config) (*agent, error) {
	s.Helper()
	cfg.Logger = nil
	orders, err := json.Marshal(agentOrders{cfg, s.input})
	s.must(err)
	self, err := os.Executable()
	s.must(err)
	a := &agent{s: s, cmd: exec.Command(self)}
	a.cmd.Env = append(os.Environ(), agentEnv+"="+string(orders))
	a.cmd.Stderr = os.Stderr
	out, err := a.cmd.StdoutPipe()
	s.must(err)
	s.must(a.cmd.Start())
	s.Cleanup(a.kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "ready\n" {
		a.kill()
		return nil, fmt.Errorf("the agent said %q: %w", line, err)
	}
	return a, nil
}

// kill is kill -9.
func (a *agent) kill() {
	if a.cmd.ProcessState == nil {
		a.cmd.Process.Kill()
		a.cmd.Wait()
	}
}

// slowly returns fewer where everything is slow.
func slowly(n, inVM int) int {
	if lab.InVM() {
		return inVM
	}
	return n
}
