//! What is of RabbitMQ alone; what every broker promises is in `contract`.

mod conversions;
mod impatient;
mod tls;
