// SPDX-License-Identifier: Apache-2.0

// Package images makes the images of the end-to-end test's pods, without a
// registry and without Docker: the shop's services from this repository, nginx
// and PostgreSQL from the Debian packages of this machine. It writes files and
// talks to nobody; its functions may be called concurrently with different
// folders.
package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/sidetrack-dev/sidetrack/test/cluster"
)

// Names of the images. Fork is the shop's in another version. Broken asks PostgreSQL
// what only a real PostgreSQL refuses; Mended does not any more.
const (
	Shop     = "sidetrack.test/shop:v1"
	Fork     = "sidetrack.test/shop:pr-42"
	Broken   = "sidetrack.test/shop:pr-43"
	Mended   = "sidetrack.test/shop:pr-43-2"
	Nginx    = "sidetrack.test/nginx:1"
	Postgres = "sidetrack.test/postgres:1"
)

// nobody is who nginx and PostgreSQL run as.
const nobody = 65534

// Build makes all images as docker-archives in a folder and returns the files.
func Build(ctx context.Context, dir string) ([]string, error) {
	var archives []string
	program := filepath.Join(dir, "shop")
	if err := cluster.StaticProgram(ctx, "github.com/sidetrack-dev/sidetrack/test/images/shop", program); err != nil {
		return nil, err
	}
	write := func(m *cluster.Image, file string) error {
		file = filepath.Join(dir, file+".tar")
		archives = append(archives, file)
		return m.Write(file)
	}
	for name, version := range map[string]string{Shop: "v1", Fork: "pr-42", Broken: "pr-43", Mended: "pr-43-2"} {
		m := &cluster.Image{Name: name, Entrypoint: []string{"/shop"}, Env: []string{"VERSION=" + version}, User: "65535:65535"}
		if name == Broken {
			m.Env = append(m.Env, "QUESTION=show cluster_title")
		}
		if err := m.AddFile("/shop", program); err != nil {
			return nil, err
		}
		if err := write(m, "shop-"+version); err != nil {
			return nil, err
		}
	}
	nginx := &cluster.Image{Name: Nginx, Entrypoint: []string{"/usr/sbin/nginx", "-g", "daemon off;"}, User: fmt.Sprint(nobody)}
	if err := nginx.AddProgram(ctx, "/usr/sbin/nginx"); err != nil {
		return nil, err
	}
	nginx.AddDir("/tmp", 0o777|fs.ModeSticky, 0)
	if err := write(nginx, "nginx"); err != nil {
		return nil, err
	}
	if err := writePostgres(ctx, func(m *cluster.Image) error { return write(m, "postgres") }); err != nil {
		return nil, err
	}
	return archives, nil
}

// writePostgres makes an image of a server with an empty database, which
// everybody may use. A pod's arguments tell one from another:
// -c cluster_name=NAME.
func writePostgres(ctx context.Context, write func(*cluster.Image) error) error {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(found) == 0 {
		return errors.Join(errors.New("PostgreSQL's server is not installed: apt-get install postgresql"), err)
	}
	server := found[len(found)-1]
	home := filepath.Dir(filepath.Dir(server)) // /usr/lib/postgresql/15
	data, err := os.MkdirTemp("", "sidetrack-initdb-")
	if err != nil {
		return fmt.Errorf("make a database's folder: %w", err)
	}
	defer os.RemoveAll(data)
	if err := os.Chown(data, nobody, nobody); err != nil {
		return fmt.Errorf("make a database's folder: %w", err)
	}
	// Neither it nor the server does it as root.
	initdb := exec.CommandContext(ctx, filepath.Join(home, "bin", "initdb"), "--pgdata="+data, "--username=postgres", "--auth=trust", "--no-locale", "--encoding=UTF8", "--no-sync", "--wal-segsize=1")
	initdb.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	initdb.Dir = data
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	for file, text := range map[string]string{
		"pg_hba.conf": "host all all all trust\n",
		// GMT is the one time zone that it knows without the files of Debian's tzdata.
		"postgresql.conf": `listen_addresses = '*'
unix_socket_directories = ''
timezone = 'GMT'
log_timezone = 'GMT'
shared_buffers = 4MB
dynamic_shared_memory_type = mmap
fsync = off
`,
	} {
		if err := os.WriteFile(filepath.Join(data, file), []byte(text), 0o600); err != nil {
			return fmt.Errorf("configure the database: %w", err)
		}
	}
	m := &cluster.Image{
		Name: Postgres, User: fmt.Sprint(nobody),
		Entrypoint: []string{server, "-D", "/data"},
	}
	if err := m.AddProgram(ctx, server); err != nil {
		return err
	}
	version := filepath.Base(home)
	if err := m.AddTree(filepath.Join("/usr/share/postgresql", version)); err != nil {
		return err
	}
	// It finds its libraries' folder even when it loads none of them.
	m.AddDir(filepath.Join(home, "lib"), 0o755, 0)
	if err := m.AddOwnedTree(data, "/data", nobody); err != nil {
		return err
	}
	return write(m)
}
