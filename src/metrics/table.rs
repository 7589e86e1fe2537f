//! Gauges that are read somewhere else: all their series are replaced at once, and what is not known has none.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder},
    metrics::MetricType,
};

/// Series by their labels.
#[derive(Debug)]
pub(super) struct Table<L>(Arc<RwLock<Vec<(L, f64)>>>);

impl<L> Table<L> {
    /// Puts these in the place of what there was.
    pub(super) fn replace(&self, series: Vec<(L, f64)>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = series;
    }
}

impl<L> Clone for Table<L> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<L> Default for Table<L> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<L: EncodeLabelSet> EncodeMetric for Table<L> {
    fn encode(&self, mut encoder: MetricEncoder) -> fmt::Result {
        let series = self.0.read().unwrap_or_else(PoisonError::into_inner);
        series
            .iter()
            .try_for_each(|(labels, value)| encoder.encode_family(labels)?.encode_gauge(value))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }

    fn is_empty(&self) -> bool {
        let series = self.0.read().unwrap_or_else(PoisonError::into_inner);
        series.is_empty()
    }
}

/// One value, if it is known.
#[derive(Clone, Debug, Default)]
pub(super) struct Maybe(Arc<RwLock<Option<f64>>>);

impl Maybe {
    pub(super) fn set(&self, value: Option<f64>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = value;
    }

    fn get(&self) -> Option<f64> {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EncodeMetric for Maybe {
    fn encode(&self, mut encoder: MetricEncoder) -> fmt::Result {
        self.get()
            .map_or(Ok(()), |value| encoder.encode_gauge(&value))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }

    fn is_empty(&self) -> bool {
        self.get().is_none()
    }
}
