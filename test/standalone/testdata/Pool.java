// SPDX-License-Identifier: Apache-2.0

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Semaphore;

/** Java's own HttpClient; it speaks as pool.py does. By default it offers an upgrade to HTTP/2. */
public class Pool {
    public static void main(String[] args) throws Exception {
        HttpClient.Builder builder = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(30));
        if (args.length > 0 && args[0].equals("http1")) {
            builder.version(HttpClient.Version.HTTP_1_1);
        }
        HttpClient client = builder.build();
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        for (String head; (head = in.readLine()) != null; ) {
            String[] words = head.split(" ");
            Semaphore gate = new Semaphore(Integer.parseInt(words[1]));
            List<CompletableFuture<String>> all = new ArrayList<>();
            for (int i = Integer.parseInt(words[2]); i > 0; i--) {
                String[] f = in.readLine().split("\t");
                HttpRequest.Builder r = HttpRequest.newBuilder(URI.create(f[1])).timeout(Duration.ofSeconds(30))
                        .header("X-Expect", f[2]).header("X-Number", f[3]);
                int length = Integer.parseInt(f[4]);
                r.method(f[0], length == 0 ? HttpRequest.BodyPublishers.noBody()
                        : HttpRequest.BodyPublishers.ofByteArray(new byte[length]));
                for (int h = 5; h < f.length; h++) {
                    int colon = f[h].indexOf(": ");
                    r.header(f[h].substring(0, colon), f[h].substring(colon + 2));
                }
                gate.acquire();
                all.add(client.sendAsync(r.build(), HttpResponse.BodyHandlers.ofByteArray()).handle((resp, e) -> {
                    gate.release();
                    if (e != null) {
                        return "request " + f[3] + ": " + e;
                    }
                    String by = resp.headers().firstValue("X-Served-By").orElse("nobody");
                    String number = resp.headers().firstValue("X-Number").orElse("none");
                    if (resp.statusCode() == 200 && by.equals(f[2]) && number.equals(f[3])) {
                        return null;
                    }
                    return "request " + f[3] + ": status " + resp.statusCode() + ", served by " + by + " as number " + number + ", want " + f[2];
                }));
            }
            int wrong = 0;
            String first = "";
            for (CompletableFuture<String> a : all) {
                String w = a.get();
                if (w != null && wrong++ == 0) {
                    first = w;
                }
            }
            System.out.println(all.size() + " " + wrong + " " + first.replace('\n', ' '));
            System.out.flush();
        }
        System.exit(0);
    }
}
