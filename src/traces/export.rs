//! Telling a collector, over OTLP (gRPC). Steps wait in a bounded queue of the SDK's own thread; what does not fit while the collector
//! is slow or away is dropped.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter as Otlp, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};
use tonic::transport::ClientTlsConfig;

use super::{Exporting, Traces};
use crate::url::without_secrets;

/// How long the collector may take for a batch.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take at the end.
pub(super) const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// The collector, and what this gateway is called there.
#[derive(Clone, Debug)]
pub struct Options {
    endpoint: String,
    service: String,
}

/// The text is not one of a collector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} names no collector; write http://HOST:4317 or https://HOST:4317 (its OTLP port for gRPC)"
)]
pub struct BadEndpoint(String);

impl Options {
    /// Reads an endpoint. Without a scheme it is `http://`, on loopback only: elsewhere that should be said.
    pub fn new(endpoint: &str, service: &str) -> Result<Self, BadEndpoint> {
        let bad = || BadEndpoint(without_secrets(endpoint));
        let url = if endpoint.contains("://") {
            endpoint.to_owned()
        } else {
            format!("http://{endpoint}")
        };
        let uri: http::Uri = url.parse().map_err(|_| bad())?;
        let host = uri.host().ok_or_else(bad)?.trim_matches(['[', ']']);
        let is_loopback = match host.parse::<IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => host == "localhost",
        };
        let is_clear = url == endpoint || (is_loopback && uri.port_u16().is_some());
        if !matches!(uri.scheme_str(), Some("http" | "https")) || !is_clear {
            return Err(bad());
        }
        Ok(Self {
            endpoint: url,
            service: service.to_owned(),
        })
    }
}

impl Traces {
    /// Begins to tell this collector, whether or not it is there. Must be called in a Tokio runtime, which does the sending.
    pub fn start(options: &Options) -> Result<Self, BadEndpoint> {
        let exporter = Otlp::builder()
            .with_tonic()
            .with_tls_config(ClientTlsConfig::new().with_enabled_roots())
            .with_endpoint(&options.endpoint)
            .with_timeout(TIMEOUT)
            .build()
            .map_err(|_| BadEndpoint(without_secrets(&options.endpoint)))?;
        let resource = Resource::builder()
            .with_service_name(options.service.clone())
            .build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(Outspoken::new(exporter))
            .with_resource(resource)
            .build();
        Ok(Self(Some(Arc::new(Exporting {
            tracer: provider.tracer("courtier"),
            provider,
        }))))
    }
}

/// Says in the log, once, that the collector does not answer, and once that it does again.
#[derive(Debug)]
struct Outspoken {
    inner: Otlp,
    failing: AtomicBool,
}

impl Outspoken {
    fn new(inner: Otlp) -> Self {
        Self {
            inner,
            failing: AtomicBool::new(false),
        }
    }
}

impl SpanExporter for Outspoken {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let exported = self.inner.export(batch).await;
        let failing = exported.is_err();
        if self.failing.swap(failing, Ordering::Relaxed) != failing {
            match &exported {
                Ok(()) => tracing::info!("the collector takes traces again"),
                Err(error) => {
                    tracing::warn!(%error, "the collector takes no traces; they are lost")
                }
            }
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(endpoint: &str) -> Option<String> {
        let options = Options::new(endpoint, "s").ok();
        options.map(|options| options.endpoint)
    }

    #[test]
    fn an_endpoint_without_a_scheme_is_understood_on_loopback() {
        let plain = |endpoint| Some(format!("http://{endpoint}"));
        for endpoint in ["localhost:4317", "127.0.0.1:4317", "[::1]:4317"] {
            assert_eq!(read(endpoint), plain(endpoint));
        }
        assert_eq!(read("http://otel:4317"), plain("otel:4317"));
        let bad = ["otel:4317", "localhost", "ftp://h:1", "http://", "a b"];
        for bad in bad.into_iter().chain(["ftp://u:secret@h:1", "u:secret@h"]) {
            let told = Options::new(bad, "s").expect_err(bad).to_string();
            assert!(!told.contains("secret"), "{told}");
            assert!(told.contains("http://HOST:4317"), "{told}");
        }
    }
}
