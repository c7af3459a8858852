//! Whatever arrives on the port, the node refuses it in words and goes on serving.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Status};

use crate::harness::{Cluster, get, http, put, reason};

/// Bytes as they are, in place of a protobuf message.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

async fn call(cluster: &Cluster, path: &'static str, body: impl Into<Bytes>) -> Status {
    let mut client = tonic::client::Grpc::new(cluster.bare(1)).max_encoding_message_size(usize::MAX);
    client.ready().await.expect("the node is there");
    let answer = client.unary(Request::new(body.into()), PathAndQuery::from_static(path), Raw).await;
    answer.expect_err("garbage is refused")
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_no_messages_are_refused() {
    let cluster = Cluster::with_table(3).await;

    for (path, bytes) in [
        ("/trivet.v1.Kv/Put", &b"\x0a\xff"[..]),
        ("/trivet.v1.Kv/Put", b"\x08\x01"),
        ("/trivet.v1.Kv/Get", b"\x0a\x02\xff\xfe\x12\x01k"),
    ] {
        let malformed = call(&cluster, path, bytes).await;
        assert_eq!((malformed.code(), reason(&malformed).as_str()), (Code::InvalidArgument, "INVALID_REQUEST"));
        assert!(malformed.message().to_lowercase().contains("decode"), "it says what is wrong: {malformed:?}");
    }
    for path in ["/trivet.v1.Kv/Explode", "/other.Service/Call"] {
        let unknown = call(&cluster, path, &b""[..]).await;
        assert_eq!((unknown.code(), reason(&unknown).as_str()), (Code::Unimplemented, "INVALID_REQUEST"));
    }
    let huge = call(&cluster, "/trivet.v1.Kv/Put", vec![0_u8; 64 << 20]).await;
    assert_eq!((huge.code(), reason(&huge).as_str()), (Code::InvalidArgument, "BATCH_TOO_LARGE"));

    cluster.kv(1).put(put("t", "k", "v")).await.expect("the node still serves");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_grpc_close_their_own_connection_only() {
    let cluster = Cluster::with_table(3).await;
    let mut kv = cluster.kv(1);
    kv.put(put("t", "k", "v")).await.expect("served before");

    let http = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec();
    let noise: Vec<u8> = (0..65_536_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let preface_then_noise = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), noise.clone()].concat();
    for bytes in [http, noise, preface_then_noise] {
        let mut stream = TcpStream::connect(cluster.node(1).address()).await.expect("the port is open");
        // The node may close while we still write.
        let _ = stream.write_all(&bytes).await;
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "the connection was left open after {} bytes of garbage", bytes.len());
    }
    // Half a request, then silence, on many connections.
    let mut silent = Vec::new();
    for _ in 0..64 {
        let mut stream = TcpStream::connect(cluster.node(1).address()).await.expect("the port is open");
        stream.write_all(b"PRI * HT").await.expect("written");
        silent.push(stream);
    }
    kv.get(get("t", "k")).await.expect("the old connection still works");
    cluster.kv(1).get(get("t", "k")).await.expect("and so do new ones");
    assert!(cluster.node(1).is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_the_http_port_gets_health_and_metrics() {
    let cluster = Cluster::with_table(3).await;
    for (path, expected) in
        [("/livez", "ok"), ("/readyz", "ok"), ("/readyz?verbose", "{"), ("/metrics", "# HELP trivet_")]
    {
        let (status, body) = http(cluster.node(1).http, path).await;
        assert_eq!(status, 200, "{path}: {body}");
        assert!(body.contains(expected), "{path}: {body}");
    }
    assert_eq!(http(cluster.node(1).http, "/nothing").await.0, 404);
}
