"""Penguin species with PyTorch: a plain training loop."""

import mlflow
import pandas as pd
import penguins
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import autolog

autolog.autolog()

torch.manual_seed(42)
data = pd.get_dummies(penguins.load().dropna(), columns=["Island"])
features = torch.tensor(data.drop(columns="Species").to_numpy("float32"))
features = (features - features.mean(0)) / features.std(0)
species = torch.tensor(data["Species"].to_numpy())
train_data, test_data = random_split(TensorDataset(features, species), [0.7, 0.3])
train_loader = DataLoader(train_data, batch_size=16, shuffle=True)
test_loader = DataLoader(test_data, batch_size=64)


class PenguinNet(nn.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


device = "cuda" if torch.cuda.is_available() else "cpu"
model = PenguinNet(features.shape[1], 16, 3).to(device)
loss_function = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

for epoch in range(10):
    model.train()
    for x, y in train_loader:
        optimizer.zero_grad()
        loss = loss_function(model(x.to(device)), y.to(device))
        loss.backward()
        optimizer.step()

    model.eval()
    correct = 0
    with torch.no_grad():
        for x, y in test_loader:
            correct += (model(x.to(device)).argmax(1) == y.to(device)).sum().item()
    accuracy = correct / len(test_data)
    mlflow.log_metric("accuracy", accuracy, step=epoch)

print(f"accuracy: {accuracy:.4f}")
