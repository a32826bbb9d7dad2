// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sidetrack-dev/sidetrack/test/lab"
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
			missing(t, fmt.Errorf("the test wants PostgreSQL's %s", name))
		}
		return found[len(found)-1]
	}
	return find("initdb"), find("postgres")
}

// unprivileged runs a program as nobody: PostgreSQL refuses to be root.
func unprivileged(name string, args ...string) []string {
	return append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", "--", name}, args...)
}

// TestPostgreSQLReachesTheSandboxsOwnDatabase: psql and two real servers, by the
// pod that psql runs in.
func TestPostgreSQLReachesTheSandboxsOwnDatabase(t *testing.T) {
	requirePrograms(t, "psql", "setpriv")
	initdb, postgres := postgresPrograms(t)
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
	both(t, func(t *testing.T, s *shop) {
		n := s.nextPort()
		s.serveEverywhere(func(name string, p *lab.Pod) error {
			data := filepath.Join(dir, fmt.Sprintf("%s-%v", name, s.agent != nil))
			if out, err := exec.Command("cp", "-a", template, data).CombinedOutput(); err != nil {
				return fmt.Errorf("copy the data: %w: %s", err, out)
			}
			cmd := p.Command("setpriv", unprivileged(postgres, "-D", data, "-h", "*", "-p", fmt.Sprint(n), "-k", dir,
				"-c", "cluster_name="+name, "-c", "fsync=off", "-c", "unix_socket_directories=", "-c", "max_wal_size=64MB")...)
			cmd.Dir = dir
			s.program(t, cmd, p, fmt.Sprintf("127.0.0.1:%d", n))
			return nil
		})
		for from, server := range s.sources() {
			for _, host := range []string{wideIP, wideIP6, s.base.IPv4.String(), s.base.IPv6.String()} {
				psql := from.Command("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", host, "-p", fmt.Sprint(n), "-U", "test", "postgres")
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
