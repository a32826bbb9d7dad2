// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sidetrack-dev/sidetrack/test/lab"
	"github.com/sidetrack-dev/sidetrack/test/programs"
)

// postgresPrograms finds PostgreSQL's server, which distributions keep out of
// the path.
func postgresPrograms(t *testing.T) (initdb, postgres string) {
	t.Helper()
	find := func(name string) string {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
		found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name) // the pattern is sound
		if len(found) == 0 {
			programs.Missing(t, fmt.Errorf("the test wants PostgreSQL's %s", name))
		}
		return found[len(found)-1]
	}
	return find("initdb"), find("postgres")
}

// unprivileged runs a program as nobody: PostgreSQL refuses to be root.
func unprivileged(name string, args ...string) []string {
	return append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", "--", name}, args...)
}

// postgresServer is a PostgreSQL with an empty database, which copies of it serve.
type postgresServer struct{ dir, template, program string }

func newPostgres(t *testing.T) *postgresServer {
	t.Helper()
	programs.Need(t, "psql", "setpriv")
	initdb, program := postgresPrograms(t)
	dir, err := os.MkdirTemp(buildDir, "postgres-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	template := filepath.Join(dir, "template")
	cmd := exec.Command("setpriv", unprivileged(initdb, "-D", template, "-U", "test", "-A", "trust", "--no-sync", "--no-locale")...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	hba := filepath.Join(template, "pg_hba.conf")
	if err := os.WriteFile(hba, []byte("host all all all trust\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return &postgresServer{dir, template, program}
}

// serve starts one everywhere; cluster_name says where.
func (g *postgresServer) serve(t *testing.T, s *shop, port int) {
	t.Helper()
	s.serveEverywhere(func(name string, p *lab.Pod) error {
		data := filepath.Join(g.dir, fmt.Sprintf("%s-%v", name, s.agent != nil))
		if out, err := exec.Command("cp", "-a", g.template, data).CombinedOutput(); err != nil {
			return fmt.Errorf("copy the data: %w: %s", err, out)
		}
		cmd := p.Command("setpriv", unprivileged(g.program, "-D", data, "-h", "*", "-p", fmt.Sprint(port), "-k", g.dir,
			"-c", "cluster_name="+name, "-c", "fsync=off", "-c", "unix_socket_directories=", "-c", "max_wal_size=64MB")...)
		cmd.Dir = g.dir
		s.program(t, cmd, p, fmt.Sprintf("127.0.0.1:%d", port))
		return nil
	})
}

// psql is a client in a pod.
func psql(from *lab.Pod, host string, port int) *exec.Cmd {
	return from.Command("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", host, "-p", fmt.Sprint(port), "-U", "test", "postgres")
}

// TestPostgreSQLReachesTheSandboxsOwnDatabase: psql and two real servers, by the
// pod that psql runs in.
func TestPostgreSQLReachesTheSandboxsOwnDatabase(t *testing.T) {
	server := newPostgres(t)
	both(t, func(t *testing.T, s *shop) {
		n := s.nextPort()
		server.serve(t, s, n)
		for from, server := range s.sources() {
			for _, host := range []string{wideIP, wideIP6, s.base.IPv4.String(), s.base.IPv6.String()} {
				psql := psql(from, host, n)
				psql.Stdin = strings.NewReader(`
show cluster_name;
select host(inet_client_addr());
create temporary table t as select generate_series(1, 50000) as i, repeat('x', 100) as pad;
select count(*), sum(i), sum(length(pad)) from t;
\copy t to '/dev/null'
begin; delete from t where i > 10; select count(*) from t; rollback;
`)
				out, err := psql.CombinedOutput()
				client := from.IPv4.String()
				if strings.Contains(host, ":") {
					client = from.IPv6.String()
				}
				want := server + "\n" + client + "\n50000|1250025000|5000000\n10\n"
				if err != nil || string(out) != want {
					t.Errorf("%s to %s: %v: got\n%swant\n%s", from.Name, host, err, out, want)
				}
			}
		}
	})
}

// TestAPostgreSQLSessionOutlivesItsAgents: psql, one transaction, three agents.
func TestAPostgreSQLSessionOutlivesItsAgents(t *testing.T) {
	server := newPostgres(t)
	s := newShop(t)
	n := s.nextPort()
	server.serve(t, s, n)
	old := s.turn()
	type session struct {
		in   io.WriteCloser
		out  *bufio.Reader
		from *lab.Pod
	}
	var all []session
	say := func(c session, statement, want string) {
		t.Helper()
		if _, err := io.WriteString(c.in, statement+"\n"); err != nil {
			t.Fatalf("%s: %v", c.from.Name, err)
		}
		if got, err := c.out.ReadString('\n'); strings.TrimSpace(got) != want {
			t.Fatalf("%s: %s answers %q, %v; want %q", c.from.Name, statement, got, err, want)
		}
	}
	for from, name := range s.sources() {
		cmd := psql(from, wideIP, n)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close(); _ = cmd.Wait() }) // what it says has been read
		c := session{in, bufio.NewReader(out), from}
		say(c, "show cluster_name;", name)
		say(c, "begin; create temporary table t (i int); select 0;", "0")
		all = append(all, c)
	}
	for i := range 2 {
		next := s.turn()
		// One statement is under way while its connection moves.
		for _, c := range all {
			if _, err := io.WriteString(c.in, "insert into t values (1); select pg_sleep(0.5)::text || 'slept';\n"); err != nil {
				t.Fatal(err)
			}
		}
		old.ended()
		old = next
		for _, c := range all {
			if got, err := c.out.ReadString('\n'); strings.TrimSpace(got) != "slept" {
				t.Fatalf("%s: %q, %v", c.from.Name, got, err)
			}
			say(c, "select count(*) from t;", fmt.Sprint(i+1))
		}
	}
	for _, c := range all {
		say(c, "commit; select sum(i) from t;", "2")
	}
	old.kill()
}
