//! The bytes of an HTTP connection: every request that is let through is one that another parser sees at the same place, and
//! one that the guard promises.

#![no_main]

use libfuzzer_sys::fuzz_target;
use signet::front::http::admitted;
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::{Builder, Runtime};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().unwrap();
}

fuzz_target!(|bytes: &[u8]| {
    let seen = RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let (mut client, server) = tokio::io::duplex(1 << 20);
            client.write_all(bytes).await.unwrap();
            client.shutdown().await.unwrap();
            admitted(server).await
        })
    });
    let mut rest = bytes;
    for target in seen {
        let mut headers = [httparse::EMPTY_HEADER; 128];
        let mut request = httparse::Request::new(&mut headers);
        let Ok(httparse::Status::Complete(head)) = request.parse(rest) else { panic!("{target} is no request") };
        assert_eq!(format!("{} {}", request.method.unwrap(), request.path.unwrap()), target);
        let values = |name: &str| -> Vec<&[u8]> {
            let of_name = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
            of_name.map(|header| header.value).collect()
        };
        assert_eq!(values("host").len(), 1);
        for refused in ["transfer-encoding", "origin", "via", "forwarded", "x-forwarded-for", "x-real-ip"] {
            assert!(values(refused).is_empty(), "{refused}");
        }
        let length = match values("content-length").as_slice() {
            [] => 0,
            [length] => str::from_utf8(length).unwrap().parse().unwrap(),
            more => panic!("{more:?}"),
        };
        // A body that did not come is followed by nothing.
        rest = rest.get(head.saturating_add(length)..).unwrap_or_default();
    }
});
