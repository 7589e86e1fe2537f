<?php
// A message as a service with php-amqplib writes and reads it.
//
// client.php send URL QUEUE     publishes one with every property and every type of header that php-amqplib can write
// client.php receive URL QUEUE  takes one and prints it as JSON; its payload in hexadecimal

require '/usr/share/php/PhpAmqpLib/autoload.php';

use PhpAmqpLib\Connection\AMQPStreamConnection;
use PhpAmqpLib\Message\AMQPMessage;
use PhpAmqpLib\Wire\AMQPArray;
use PhpAmqpLib\Wire\AMQPDecimal;
use PhpAmqpLib\Wire\AMQPTable;

[, $verb, $url, $queue] = $argv;
$at = parse_url($url);
$vhost = urldecode(substr($at['path'] ?? '/', 1)) ?: '/';
$connection = new AMQPStreamConnection($at['host'], $at['port'], $at['user'], $at['pass'], $vhost);
$channel = $connection->channel();

if ($verb === 'send') {
    $headers = new AMQPTable();
    $headers->set('void', null, AMQPTable::T_VOID);
    $headers->set('bool', true, AMQPTable::T_BOOL);
    $headers->set('i8', -5, AMQPTable::T_INT_SHORTSHORT);
    $headers->set('u8', 200, AMQPTable::T_INT_SHORTSHORT_U);
    $headers->set('i16', -300, AMQPTable::T_INT_SHORT);
    $headers->set('u16', 60000, AMQPTable::T_INT_SHORT_U);
    $headers->set('i32', -70000, AMQPTable::T_INT_LONG);
    $headers->set('u32', 4000000000, AMQPTable::T_INT_LONG_U);
    $headers->set('i64', 1 << 60, AMQPTable::T_INT_LONGLONG);
    $headers->set('decimal', new AMQPDecimal(-1234, 2), AMQPTable::T_DECIMAL);
    $headers->set('text', 'Grüße', AMQPTable::T_STRING_LONG);
    $headers->set('bytes', "\x00\xff", AMQPTable::T_BYTES);
    $headers->set('time', 1770091506, AMQPTable::T_TIMESTAMP);
    $headers->set('list', new AMQPArray([1, 'two', new AMQPArray([false])]), AMQPTable::T_ARRAY);
    $headers->set('table', new AMQPTable(['deep' => new AMQPTable(['deeper' => null])]), AMQPTable::T_TABLE);
    $message = new AMQPMessage("\x00\xffphp\r\n", [
        'content_type' => 'application/octet-stream',
        'content_encoding' => 'identity',
        'application_headers' => $headers,
        'delivery_mode' => AMQPMessage::DELIVERY_MODE_PERSISTENT,
        'priority' => 7,
        'correlation_id' => 'correlation',
        'reply_to' => 'answers',
        'expiration' => '600000',
        'message_id' => 'from-php',
        'timestamp' => 1700000000,
        'type' => 'order.created',
        'user_id' => 'guest',
        'app_id' => 'php',
    ]);
    $channel->confirm_select();
    $channel->basic_publish($message, '', $queue, true);
    $channel->wait_for_pending_acks_returns(10);
} else {
    $message = $channel->basic_get($queue, true);
    $properties = $message->get_properties();
    $properties['headers'] = $properties['application_headers']->getNativeData();
    unset($properties['application_headers']);
    echo json_encode(['payload' => bin2hex($message->getBody())] + $properties, JSON_THROW_ON_ERROR), "\n";
}

$connection->close();
